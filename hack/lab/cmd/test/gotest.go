package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tally is what was found so far.
type tally struct {
	passed  int
	failed  []string // names, with a reason where one is known
	skipped []string
}

func (t *tally) fail(name, why string) {
	if why != "" {
		name += ": " + strings.SplitN(why, "\n", 2)[0]
	}
	t.failed = append(t.failed, name)
}

func (t *tally) summary(d time.Duration) {
	if len(t.skipped) > 0 {
		fmt.Println("skipped:")
		for _, s := range t.skipped {
			fmt.Println("  " + s)
		}
	}
	if len(t.failed) > 0 {
		fmt.Println("failed:")
		for _, f := range t.failed {
			fmt.Println("  " + f)
		}
	}
	fmt.Printf("all of it took %.0f s\n", d.Seconds())
	fmt.Printf("%d passed, %d failed, %d skipped\n", t.passed, len(t.failed), len(t.skipped))
}

// event is one line of go test -json.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build-output
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// goTest runs go test with args and counts its tests under the stage's name.
func (r *runner) goTest(ctx context.Context, stage string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json", "-count=1"}, args...)...)
	if slices.Contains(args, "-race") {
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // the detector is in C
	}
	return r.json(ctx, stage, cmd)
}

// json runs a command that writes go test -json, and counts its tests.
func (r *runner) json(ctx context.Context, stage string, cmd *exec.Cmd) error {
	log, err := os.Create(filepath.Join(r.logs, stage+".log"))
	if err != nil {
		return fmt.Errorf("create the log: %w", err)
	}
	defer log.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run %v: %w", cmd.Args, err)
	}
	var other strings.Builder
	cmd.Stderr = io.MultiWriter(&other, log)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %v: %w", cmd.Args, err)
	}
	before := len(r.tally.failed)
	c := counter{r: r, outputs: map[string]*strings.Builder{}, counts: map[string]*counts{}}
	lines := bufio.NewReader(stdout)
	for {
		line, readErr := lines.ReadString('\n')
		var e event
		if json.Unmarshal([]byte(line), &e) == nil {
			log.WriteString(e.Output)
			c.event(e)
		} else if line != "" {
			log.WriteString(line)
			other.WriteString(line)
		}
		if readErr != nil {
			break
		}
	}
	err = cmd.Wait()
	if err != nil && len(r.tally.failed) == before {
		return errors.Join(fmt.Errorf("run %s: %w", strings.Join(cmd.Args, " "), err), errors.New(other.String()))
	}
	if err == nil && c.packages == 0 {
		return fmt.Errorf("%s ran no test", strings.Join(cmd.Args, " "))
	}
	return nil
}

// counter follows the events of one run.
type counter struct {
	r        *runner
	packages int
	outputs  map[string]*strings.Builder // of tests and, with no test's name, of packages
	counts   map[string]*counts          // of packages
}

type counts struct{ passed, failed, skipped int }

func (c *counter) output(key string) *strings.Builder {
	if c.outputs[key] == nil {
		c.outputs[key] = &strings.Builder{}
	}
	return c.outputs[key]
}

func (c *counter) event(e event) {
	key := e.Package + " " + e.Test
	n := c.counts[e.Package]
	if n == nil {
		n = &counts{}
		c.counts[e.Package] = n
	}
	switch {
	case e.Action == "output":
		c.output(key).WriteString(e.Output)
		if e.Test == "" || c.r.verbose {
			break
		}
	case e.Action == "build-output":
		c.output("build " + e.ImportPath).WriteString(e.Output)
	case e.Test == "":
		c.packageEnd(e, n)
	case e.Action == "pass":
		n.passed++
		c.r.tally.passed++
		delete(c.outputs, key)
	case e.Action == "fail":
		n.failed++
		c.r.tally.fail(short(e.Package)+" "+e.Test, "")
		fmt.Printf("FAIL %s %s\n%s\n", short(e.Package), e.Test, c.output(key))
	case e.Action == "skip":
		n.skipped++
		c.skip(e, c.output(key).String())
	}
	if c.r.verbose && e.Test != "" && (e.Action == "pass" || e.Action == "skip") {
		fmt.Printf("%-4s %s %s (%.2f s)\n", e.Action, short(e.Package), e.Test, e.Elapsed)
	}
}

// privileges are what reasons to skip name that can't be a reason here.
var privileges = regexp.MustCompile(`(?i)\broot\b|privileg|/dev/fuse|\bfuse\b|\bmount|CAP_|permission`)

// skip counts a test that skipped itself, as a failure where it wanted a
// privilege: all of them are at hand.
func (c *counter) skip(e event, output string) {
	var why []string
	for _, line := range strings.Split(output, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			why = append(why, line)
		}
	}
	reason := strings.Join(why, " ")
	name := short(e.Package) + " " + e.Test
	if allocNames.MatchString(e.Test) && strings.Contains(reason, "race detector") {
		return // the alloc stage runs it
	}
	if privileges.MatchString(reason) {
		c.r.tally.fail(name, "skipped for want of a privilege: "+reason)
		fmt.Printf("FAIL %s skipped itself: %s\n", name, reason)
		return
	}
	c.r.tally.skipped = append(c.r.tally.skipped, name+": "+reason)
}

func (c *counter) packageEnd(e event, n *counts) {
	switch e.Action {
	case "pass":
		c.packages++
		fmt.Printf("ok   %-40s %6.1f s  %d passed", short(e.Package), e.Elapsed, n.passed)
		if n.skipped > 0 {
			fmt.Printf(", %d skipped", n.skipped)
		}
		fmt.Println()
	case "fail":
		c.packages++
		fmt.Printf("FAIL %s %.1f s\n", short(e.Package), e.Elapsed)
		if n.failed > 0 && !strings.Contains(c.output(e.Package+" ").String(), "WARNING: DATA RACE") {
			return
		}
		// No test is to blame: it did not build, or it died, or raced outside of one.
		fmt.Print(c.output("build "+e.FailedBuild).String(), lastLines(c.output(e.Package+" ").String(), 100))
		if n.failed == 0 {
			c.r.tally.fail(short(e.Package), "the package failed outside of its tests")
		}
	}
}

// short is a package's path in this repository.
func short(pkg string) string {
	return strings.TrimPrefix(strings.TrimPrefix(pkg, "github.com/lazykit/lazykit"), "/")
}

func lastLines(s string, n int) string {
	lines := strings.SplitAfter(s, "\n")
	if len(lines) > n {
		lines = append([]string{"...\n"}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "")
}
