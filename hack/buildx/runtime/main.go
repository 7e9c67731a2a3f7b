// Command runtime is runc for a machine on which even root lacks a capability,
// such as a sandboxed virtual machine. The Docker engine gives a privileged
// container every capability that the kernel knows, and runc fails if one of them
// can't be had; this takes those out of the specification and runs runc.
//
// Usage: as runc, which is found in PATH.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "runtime:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	bundle, process := specs(args)
	if bundle != "" {
		if err := edit(filepath.Join(bundle, "config.json"), "process"); err != nil {
			return err
		}
	}
	if process != "" {
		if err := edit(process); err != nil {
			return err
		}
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	return syscall.Exec(runc, append([]string{"runc"}, args...), os.Environ())
}

// specs finds the bundle of a "create" or "run", and the file of an "exec".
func specs(args []string) (bundle, process string) {
	creates := slices.Contains(args, "create") || slices.Contains(args, "run")
	executes := slices.Contains(args, "exec")
	for i, arg := range args[:max(0, len(args)-1)] {
		switch {
		case creates && (arg == "--bundle" || arg == "-b"):
			bundle = args[i+1]
		case executes && (arg == "--process" || arg == "-p"):
			process = args[i+1]
		}
	}
	return bundle, process
}

// edit rewrites a JSON file whose process lies at the end of path.
func edit(file string, path ...string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	process := spec
	for _, name := range path {
		next, ok := process[name].(map[string]any)
		if !ok {
			return nil
		}
		process = next
	}
	sets, ok := process["capabilities"].(map[string]any)
	if !ok {
		return nil
	}
	had, err := bounding()
	if err != nil {
		return err
	}
	for name, set := range sets {
		if list, ok := set.([]any); ok {
			sets[name] = slices.DeleteFunc(list, func(c any) bool { return !had[fmt.Sprint(c)] })
		}
	}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

// bounding is this process's bounding set, by the names that specifications use.
func bounding() (map[string]bool, error) {
	caps, err := capability.NewPid2(0)
	if err != nil {
		return nil, err
	}
	if err := caps.Load(); err != nil {
		return nil, err
	}
	had := map[string]bool{}
	for _, c := range capability.ListKnown() {
		if caps.Get(capability.BOUNDING, c) {
			had["CAP_"+strings.ToUpper(c.String())] = true
		}
	}
	return had, nil
}
