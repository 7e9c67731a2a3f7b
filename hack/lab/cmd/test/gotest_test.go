package main

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// run gives the runner what a go test -json would have written.
func run(t *testing.T, script string) (*runner, error) {
	t.Helper()
	r := &runner{logs: t.TempDir()}
	err := r.json(t.Context(), "stage", exec.CommandContext(t.Context(), "sh", "-c", script))
	return r, err
}

func TestCounts(t *testing.T) {
	for _, tc := range []struct {
		name            string
		script          string
		passed          int
		failed, skipped []string
		err             string
	}{
		{
			name: "passes",
			script: `printf '%s\n' '{"Action":"pass","Package":"p","Test":"TestA"}'
printf '%s\n' '{"Action":"pass","Package":"p"}'`,
			passed: 1,
		}, {
			name: "a test fails",
			script: `printf '%s\n' '{"Action":"fail","Package":"p","Test":"TestA"}'
printf '%s\n' '{"Action":"fail","Package":"p"}'; exit 1`,
			failed: []string{"p TestA"},
		}, {
			name:   "a package fails without a test",
			script: `printf '%s\n' '{"Action":"fail","Package":"p"}'; exit 1`,
			failed: []string{"p: the package failed outside of its tests"},
		}, {
			name: "a test skips itself with a good reason",
			script: `printf '%s\n' '{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: no such kernel\n"}'
printf '%s\n' '{"Action":"skip","Package":"p","Test":"TestA"}'
printf '%s\n' '{"Action":"pass","Package":"p"}'`,
			skipped: []string{"p TestA: a_test.go:1: no such kernel"},
		}, {
			name: "a test skips itself for want of root",
			script: `printf '%s\n' '{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:1: needs root\n"}'
printf '%s\n' '{"Action":"skip","Package":"p","Test":"TestA"}'
printf '%s\n' '{"Action":"pass","Package":"p"}'`,
			failed: []string{"p TestA: skipped for want of a privilege: a_test.go:1: needs root"},
		}, {
			name:   "nothing runs",
			script: `true`,
			err:    "ran no test",
		}, {
			name:   "the command fails without a word about tests",
			script: `echo broken >&2; exit 3`,
			err:    "broken",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := run(t, tc.script)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tally{passed: tc.passed, failed: tc.failed, skipped: tc.skipped}, r.tally)
		})
	}
}

func TestFindsItself(t *testing.T) {
	found, err := find(".", "Test")
	require.NoError(t, err)
	require.Contains(t, found, function{pkg: "./.", name: "TestFindsItself"})
	require.NotContains(t, found, function{pkg: "./.", name: "run"})
}
