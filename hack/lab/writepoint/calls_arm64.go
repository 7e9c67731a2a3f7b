package writepoint

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// machineCalls are those that not all machines have.
var machineCalls = map[uintptr]call{
	unix.SYS_RENAMEAT: at("renameat", false, 1, 3),
}
