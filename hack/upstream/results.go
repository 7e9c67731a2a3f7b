package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// outcome is what became of one test. A test that was started and never ended
// (a crash of the test binary, a timeout) is lost.
type outcome string

const (
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
	lost    outcome = "lost"
)

// results are the outcomes of one run, by test name. Only tests of a daemon
// are in it: their names hold "/worker=".
type results map[string]outcome

// event is one line of "go tool test2json".
type event struct {
	Action string
	Test   string
	Output string
}

// readEvents reads test2json's output to its end.
func readEvents(r io.Reader) (results, error) {
	res := results{}
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 64<<20) // the logs of a failed test come in long lines
	for scanner.Scan() {
		var e event
		if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
			continue // what a test writes straight to its stdout
		}
		if !strings.Contains(e.Test, "/worker=") {
			continue
		}
		switch e.Action {
		case "run":
			res[e.Test] = lost
		case "pass", "fail", "skip":
			res[e.Test] = outcome(e.Action)
		}
	}
	return res, scanner.Err()
}

// counts says how many tests ended in which way.
func (r results) counts() string {
	n := map[outcome]int{}
	for _, o := range r {
		n[o]++
	}
	s := fmt.Sprintf("%d passed, %d failed, %d skipped", n[passed], n[failed], n[skipped])
	if n[lost] > 0 {
		s += fmt.Sprintf(", %d lost", n[lost])
	}
	return s
}

// worse are the tests that pass in r and do not in other; a skip counts as
// much as a failure, since it would hide one. Parents of a listed subtest are
// left out.
func (r results) worse(other results) []string {
	var names []string
	for name, o := range r {
		if o == passed && other[name] != passed {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.DeleteFunc(names, func(name string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, name+"/") })
	})
}

// only are the tests that ended one way in r and another way in other.
func (r results) only(o outcome, other results, theirs outcome) []string {
	var names []string
	for name := range r {
		if r[name] == o && other[name] == theirs {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// matching are the results of the tests that a filter selects.
func (r results) matching(f filter) results {
	out := maps.Clone(r)
	maps.DeleteFunc(out, func(name string, _ outcome) bool { return !f.matches(name) })
	return out
}

// save writes results to a file, whole or not at all.
func (r results) save(path string) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// loadResults reads saved results; nil if there are none.
func loadResults(path string) (results, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r results
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
