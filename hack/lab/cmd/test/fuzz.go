package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// fuzz runs every fuzz target for the chosen time, two at a time with one
// process each.
func (r *runner) fuzz(ctx context.Context) error {
	targets, err := find(r.root, "Fuzz")
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return errors.New("there is no fuzz target")
	}
	fmt.Printf("%d targets, %v each\n", len(targets), r.fuzztime)
	var mu sync.Mutex // guards the tally and the output
	var running sync.WaitGroup
	slots := make(chan struct{}, 2)
	for _, target := range targets {
		slots <- struct{}{}
		running.Add(1)
		go func() {
			defer running.Done()
			defer func() { <-slots }()
			output, err := r.fuzzOne(ctx, target)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.tally.fail(target.pkg+" "+target.name, err.Error())
				fmt.Printf("FAIL %s %s: %v\n%s\n", target.pkg, target.name, err, lastLines(output, 60))
				return
			}
			r.tally.passed++
			fmt.Printf("ok   %s %s %s\n", target.pkg, target.name, progress(output))
		}()
	}
	running.Wait()
	return ctx.Err()
}

func (r *runner) fuzzOne(ctx context.Context, target function) (output string, err error) {
	for range 2 {
		// What hangs is to be found, too: building and the seeds take less than this.
		limited, cancel := context.WithTimeout(ctx, r.fuzztime+5*time.Minute)
		cmd := exec.CommandContext(limited, "go", "test", "-run=^$", "-fuzz=^"+target.name+"$", "-fuzztime="+r.fuzztime.String(), "-parallel=1", target.pkg)
		out, runErr := cmd.CombinedOutput()
		cancel()
		output, err = string(out), runErr
		log := filepath.Join(r.logs, "fuzz-"+strings.ReplaceAll(strings.TrimPrefix(target.pkg, "./"), "/", "-")+"-"+target.name+".log")
		if werr := os.WriteFile(log, out, 0o644); werr != nil {
			return output, fmt.Errorf("keep the output: %w", werr)
		}
		// Go's fuzzer at times reports the end of its own time as a failure.
		if err == nil || strings.Contains(output, "Failing input written") || !strings.Contains(output, "context deadline exceeded") {
			break
		}
	}
	return output, err
}

// progress is the last line in which the fuzzer says how far it came.
func progress(output string) string {
	lines := strings.Split(output, "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.HasPrefix(lines[i], "fuzz: elapsed") {
			return strings.TrimPrefix(lines[i], "fuzz: ")
		}
	}
	return ""
}
