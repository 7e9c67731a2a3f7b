package main

import (
	"fmt"
	"regexp"
	"strings"
)

// filter selects tests of one mode by the name of the test function, which is
// the second element of the names that the harness makes:
// TestIntegration/TestCopyLink/worker=oci-snapshotter-stargz/frontend=builtin.
type filter struct {
	mode string
	test *regexp.Regexp // nil: all
}

func newFilter(mode, test string) (filter, error) {
	f := filter{mode: mode}
	if test == "" {
		return f, nil
	}
	re, err := regexp.Compile(test)
	if err != nil {
		return f, fmt.Errorf("--run: %w", err)
	}
	f.test = re
	return f, nil
}

// pattern is the -test.run argument for the filter.
func (f filter) pattern() string {
	test := ".*"
	if f.test != nil {
		test = "(" + f.test.String() + ")"
	}
	return ".*/" + test + "/worker=oci-snapshotter-" + f.mode + "$"
}

// matches tells whether the filter selects a test that the harness named.
func (f filter) matches(name string) bool {
	elems := strings.SplitN(name, "/", 4)
	if len(elems) < 3 || elems[2] != "worker=oci-snapshotter-"+f.mode {
		return false
	}
	return f.test == nil || f.test.MatchString(elems[1])
}

// exactly is the -test.run argument for one test and its subtests.
func exactly(name string) string {
	elems := strings.Split(name, "/")
	for i, e := range elems {
		elems[i] = "^" + regexp.QuoteMeta(e) + "$"
	}
	return strings.Join(elems, "/")
}
