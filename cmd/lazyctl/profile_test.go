package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

// run runs lazyctl with arguments and a standard input.
func run(t *testing.T, in string, args ...string) (out, said string, err error) {
	var stdout, stderr bytes.Buffer
	app := newApp()
	app.Reader, app.Writer, app.ErrWriter = strings.NewReader(in), &stdout, &stderr
	err = app.Run(t.Context(), append([]string{"lazyctl"}, args...))
	return stdout.String(), stderr.String(), err
}

func TestProfiles(t *testing.T) {
	here, there := filepath.Join(t.TempDir(), "here"), filepath.Join(t.TempDir(), "there")
	layer, other := digest.FromString("layer"), digest.FromString("other")
	step := profile.StepDigest([]string{"make"}, "/src")
	s, err := profile.Open(here)
	require.NoError(t, err)
	ranges := []profile.Range{{Off: 5, Len: 10}, {Off: 100, Len: 7}}
	require.NoError(t, s.Put(layer, step, ranges, true))

	out, _, err := run(t, "", "profile", "list", "--dir", here)
	require.NoError(t, err)
	require.Regexp(t, layer.String()+`  `+step.Encoded()[:12]+` +2 +17 +20`, out)

	file := filepath.Join(t.TempDir(), "x.profiles")
	_, said, err := run(t, "", "profile", "export", "--dir", here, "-o", file, layer.String())
	require.NoError(t, err)
	require.Contains(t, said, "1 layers")
	_, _, err = run(t, "", "profile", "import", "--dir", there, file)
	require.NoError(t, err)
	s, err = profile.Open(there)
	require.NoError(t, err)
	got, err := s.Get(layer, step)
	require.NoError(t, err)
	require.Equal(t, ranges, got)

	// Through a pipe.
	out, _, err = run(t, "", "profile", "export", "--dir", here)
	require.NoError(t, err)
	_, said, err = run(t, out, "profile", "import", "--dir", there, "-")
	require.NoError(t, err)
	require.Contains(t, said, "imported the access profiles of 1 layers")

	for _, c := range []struct {
		what string
		args []string
		says string
	}{
		{"a digest that is none", []string{"export", "--dir", here, "x"}, `"x"`},
		{"a layer that nothing is known of", []string{"export", "--dir", here, other.String()}, "0 of 1"},
		{"no directory", []string{"list", "--dir", here + "x"}, "--dir"},
		{"no file", []string{"import", "--dir", there}, "FILE"},
		{"a file that is not there", []string{"import", "--dir", there, here + "/none"}, "none"},
		{"a file of something else", []string{"import", "--dir", there, "/etc/passwd"}, "/etc/passwd: line 1"},
		{"an argument too many", []string{"list", "--dir", here, "x"}, `"x"`},
	} {
		_, _, err := run(t, "", append([]string{"profile"}, c.args...)...)
		require.ErrorContains(t, err, c.says, c.what)
	}
	entries, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, entries, 1, "no half file is left")
}
