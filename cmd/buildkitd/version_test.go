package main

import (
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVersionHasFourWords: buildx takes the third, and wants four.
func TestVersionHasFourWords(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "--version")
	cmd.Env = append(os.Environ(), runAsDaemon+"=1")
	out, err := cmd.Output()
	require.NoError(t, err)
	words := strings.Fields(string(out))
	require.Len(t, words, 4)
	require.Equal(t, []string{"buildkitd", "github.com/moby/buildkit"}, words[:2])
	require.Regexp(t, `^v0\.33\.1$`, words[2])
	require.Regexp(t, `^lazykit`, words[3])
}

func TestRevision(t *testing.T) {
	setting := func(kv ...string) *debug.BuildInfo {
		info := &debug.BuildInfo{}
		for i := 0; i < len(kv); i += 2 {
			info.Settings = append(info.Settings, debug.BuildSetting{Key: kv[i], Value: kv[i+1]})
		}
		return info
	}
	require.Equal(t, "lazykit", revision(setting()))
	require.Equal(t, "lazykit-abc", revision(setting("vcs.revision", "abc", "vcs.modified", "false")))
	require.Equal(t, "lazykit-abc.m", revision(setting("vcs.revision", "abc", "vcs.modified", "true")))
}
