package main

import (
	"os"
	"testing"
)

// runAsDaemon in the environment makes the test binary a buildkitd, so that
// tests can start one without a build.
const runAsDaemon = "LAZYKIT_TEST_RUN_AS_BUILDKITD"

func TestMain(m *testing.M) {
	if os.Getenv(runAsDaemon) != "" {
		main()
		return
	}
	if root := os.Getenv(runStuck); root != "" {
		beStuck(root)
		return
	}
	os.Exit(m.Run())
}
