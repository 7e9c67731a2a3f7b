package fuse_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// children are what the test binary does when it is started again with
// FUSE_TEST_CHILD set, for what must not happen in the server's own process:
// a page fault on its mount (the Go scheduler would wait for it for ever), dying.
var children = map[string]func(args []string) error{
	"mmap":  childMmap,
	"page":  childPage,
	"tail":  childTail,
	"serve": childServe,
	"storm": childStorm,
}

func TestMain(m *testing.M) {
	if name := os.Getenv("FUSE_TEST_CHILD"); name != "" {
		if err := children[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
