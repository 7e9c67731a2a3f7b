package fusetest

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireFUSE skips a test that can't mount: it needs root and /dev/fuse. With
// LAZYKIT_PRIVILEGED=1 in the environment a missing privilege fails the test.
func RequireFUSE(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		refuse(t, "needs root to mount")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		refuse(t, "needs /dev/fuse: "+err.Error())
		return
	}
	f.Close()
}

func refuse(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
		t.Fatal("LAZYKIT_PRIVILEGED=1, but the test " + why)
	}
	t.Skip(why)
}

// Overlay mounts lower directories (topmost first) with a fresh upper directory
// and returns the merged directory. The mount ends with the test.
func Overlay(t testing.TB, lower ...string) string {
	t.Helper()
	return OverlayOptions(t, "", lower...)
}

// OverlayOptions is Overlay with further mount options, comma-separated.
func OverlayOptions(t testing.TB, options string, lower ...string) string {
	t.Helper()
	// Overlay's upper directory can't be on another overlay, which /tmp may be.
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Fatalf("tmpfs: %v", err)
	}
	t.Cleanup(func() { unmount(t, base) })
	merged := filepath.Join(base, "merged")
	for _, dir := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data := "lowerdir="
	for i, dir := range lower {
		if i > 0 {
			data += ":"
		}
		data += dir
	}
	data += ",upperdir=" + filepath.Join(base, "upper") + ",workdir=" + filepath.Join(base, "work") + ",index=off"
	if options != "" {
		data += "," + options
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
		t.Fatalf("overlay of %q: %v", lower, err)
	}
	t.Cleanup(func() { unmount(t, merged) })
	return merged
}

func unmount(t testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		t.Errorf("unmount %s: %v", path, err)
	}
}
