package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// release is what base images are made from: the Debian of this machine, so
// that its mirror and keys fit.
type release struct {
	Codename string
	Mirror   string // "" is debootstrap's own choice
}

const defaultCodename = "bookworm"

// hostRelease reads the machine's release and the mirror that its apt uses. A
// machine that is no Debian gets the defaults.
func hostRelease(ctx context.Context) release {
	rel := release{Codename: defaultCodename}
	fields := map[string]string{}
	if file, err := os.Open("/etc/os-release"); err == nil {
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if key, value, ok := strings.Cut(lines.Text(), "="); ok {
				fields[key] = strings.Trim(value, `"'`)
			}
		}
	}
	if fields["ID"] == "debian" && fields["VERSION_CODENAME"] != "" {
		rel.Codename = fields["VERSION_CODENAME"]
	}
	format := "$(CODENAME) $(ORIGIN) $(REPO_URI)"
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", format, "Created-By: Packages").Output()
	if err != nil {
		return rel
	}
	for _, line := range strings.Split(string(out), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == rel.Codename && f[1] == "Debian" {
			rel.Mirror = strings.TrimSuffix(f[2], "/")
			break
		}
	}
	return rel
}

// epoch bounds modification times in layers (2026-11-01), so that a base made
// twice from the same packages is the same.
const epoch = 1793491200

var chrootEnv = append([]string{
	fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch),
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"LC_ALL=C", "HOME=/root",
}, "DEBIAN_FRONTEND=noninteractive")

// debootstrap makes a minimal Debian in dir, which must not exist.
func debootstrap(ctx context.Context, rel release, dir string) error {
	if err := Install(ctx, "debootstrap", "debian-archive-keyring"); err != nil {
		return err
	}
	args := []string{"debootstrap", "--variant=minbase", rel.Codename, dir}
	if rel.Mirror != "" {
		args = append(args, rel.Mirror)
	}
	Logf("debootstrap %s %s", rel.Codename, rel.Mirror)
	if err := quiet(ctx, []string{chrootEnv[0], "LC_ALL=C"}, args...); err != nil {
		return err
	}
	return tidy(dir)
}

// aptInstall installs the base's packages in the Debian tree at dir.
func aptInstall(ctx context.Context, dir string, base Base) error {
	Logf("apt-get install %s in the base", strings.Join(base.Packages, " "))
	conf, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return fmt.Errorf("read apt's configuration: %w", err)
	}
	proxies := ""
	for _, line := range strings.Split(string(conf), "\n") {
		if strings.HasPrefix(line, "Acquire::") && strings.Contains(line, "::Proxy") {
			proxies += line + "\n"
		}
	}
	temporary := map[string]string{
		"etc/apt/apt.conf.d/99lab": proxies,
		"usr/sbin/policy-rc.d":     "#!/bin/sh\nexit 101\n", // no service starts in here
	}
	if resolv, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		temporary["etc/resolv.conf"] = string(resolv)
	}
	if hosts, err := os.ReadFile("/etc/hosts"); err == nil {
		temporary["etc/hosts"] = string(hosts)
	}
	for name, content := range temporary {
		path := filepath.Join(dir, name)
		if exists(path) {
			return fmt.Errorf("base has a %s of its own", name)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			return fmt.Errorf("write %s of the base: %w", name, err)
		}
		defer os.Remove(path)
	}
	// The mounts end with the namespace, and so does every process in it.
	script := `mount -t proc proc "$0/proc" && exec chroot "$0" sh -ec 'apt-get update -q; apt-get install -y -q "$@"' sh "$@"`
	args := []string{"unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, dir}
	if !base.Recommends {
		args = append(args, "--no-install-recommends")
	}
	args = append(args, base.Packages...)
	if err := quiet(ctx, chrootEnv, args...); err != nil {
		return err
	}
	for name := range temporary {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("tidy the base: %w", err)
		}
	}
	return tidy(dir)
}

// tidy removes what differs from run to run or only helps apt: logs, package
// lists, downloaded packages, caches, and what debootstrap took from this machine.
func tidy(dir string) error {
	for _, pattern := range []string{
		"var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*", "var/cache/ldconfig/*",
		"var/cache/debconf/*-old", "var/lib/dpkg/*-old", "tmp/*", "run/*",
		"etc/resolv.conf", "etc/hostname", "etc/hosts", "etc/machine-id",
	} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("tidy the base: %w", err)
		}
		for _, path := range paths {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("tidy the base: %w", err)
			}
		}
	}
	return nil
}

// unpackLayer extracts a .tar.zst file that writeLayer made into dir.
func unpackLayer(ctx context.Context, path, dir string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open layer: %w", err)
	}
	defer file.Close()
	zr, err := zstd.NewReader(file)
	if err != nil {
		return fmt.Errorf("open layer %s: %w", path, err)
	}
	defer zr.Close()
	return untar(ctx, zr, dir)
}

// untar extracts a tar stream into dir with everything that a layer can hold.
func untar(ctx context.Context, r io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the directory to extract to: %w", err)
	}
	cmd := exec.CommandContext(ctx, "tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", dir)
	cmd.Stdin = r
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("extract to %s: %w\n%s", dir, err, tail(string(out), 10))
	}
	return nil
}
