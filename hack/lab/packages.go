package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Install makes sure that the named Debian packages are installed, through
// apt-get, as root. What is there already costs one dpkg-query. The output of
// apt-get is shown only when it fails.
func Install(ctx context.Context, packages ...string) error {
	missing := missingPackages(ctx, packages)
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("packages %s are missing, and this is no Debian system: %w", strings.Join(missing, " "), err)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("packages %s are missing, and only root can install them", strings.Join(missing, " "))
	}
	Logf("installing %s", strings.Join(missing, " "))
	return locked(ctx, "apt", func() error {
		install := append([]string{"apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"}, missing...)
		if quiet(ctx, aptEnv, install...) == nil {
			return nil
		}
		// The lists may be missing or older than the mirror.
		if err := quiet(ctx, aptEnv, "apt-get", "update", "-q"); err != nil {
			return err
		}
		return quiet(ctx, aptEnv, install...)
	})
}

var aptEnv = []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"}

// missingPackages are those of packages that are not installed.
func missingPackages(ctx context.Context, packages []string) []string {
	args := append([]string{"-W", "-f", "${Package} ${db:Status-Abbrev}\n"}, packages...)
	// It exits with 1 when one of them is unknown, and still lists the others.
	out, _ := exec.CommandContext(ctx, "dpkg-query", args...).Output()
	have := map[string]bool{}
	for _, line := range strings.Split(string(out), "\n") {
		if name, status, ok := strings.Cut(line, " "); ok && strings.HasPrefix(status, "ii") {
			have[name] = true
		}
	}
	var missing []string
	for _, p := range packages {
		if !have[p] {
			missing = append(missing, p)
		}
	}
	return missing
}

// quiet runs a command with env added to the environment. The error carries the
// end of its output.
func quiet(ctx context.Context, env []string, args ...string) error {
	return quietIn(ctx, "", env, args...)
}

// quietIn is quiet in directory dir.
func quietIn(ctx context.Context, dir string, env []string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, tail(out.String(), 30))
	}
	return nil
}

// tail is the last n lines of s.
func tail(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = append([]string{"..."}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}
