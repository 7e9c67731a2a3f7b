package worker

import (
	"strings"
	"testing"

	"github.com/moby/buildkit/executor"
	"github.com/stretchr/testify/require"
)

func TestFilesNamed(t *testing.T) {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	for name, tc := range map[string]struct {
		args []string
		want string // the last of each file's paths
	}{
		"nothing":          {},
		"exec form":        {[]string{"python3", "-m", "pip", "/app/x.py"}, "/b/python3 /app/x.py"},
		"relative":         {[]string{"./configure"}, "/src/configure"},
		"commands":         {sh("mkdir -p /out && cc -c x.c | tee y; make"), "/bin/sh /b/mkdir /out /b/cc /b/tee /b/make"},
		"once":             {sh("a; a; a"), "/bin/sh /b/a"},
		"blocks":           {sh("if test -e /x; then a; else b; fi; for i in 1 2; do c $i; done"), "/bin/sh /b/test /x /b/a /b/b /b/c"},
		"substitution":     {sh("x=$(date) `id` 'my prog'"), "/bin/sh /b/date /b/id"},
		"functions":        {sh("f() { a; }; f"), "/bin/sh /b/a /b/f"},
		"quoted":           {sh(`"a" 'b' "$c" "d"e`), "/bin/sh /b/a"},
		"wrappers":         {sh("exec env -i A=1 nice make; sudo -E apt-get update; time ls"), "/bin/sh /b/exec /b/env /b/nice /b/make /b/sudo /b/apt-get /b/ls"},
		"assignments":      {sh("A=1 B=2 cmd"), "/bin/sh /b/cmd"},
		"a program's text": {sh(`python3 -c 'import os; os.system("ls")'`), "/bin/sh /b/python3"},
		"options":          {[]string{"/bin/bash", "-eo", "pipefail", "-c", "a"}, "/bin/bash /b/a"},
		"joined options":   {[]string{"bash", "-exc", "a"}, "/b/bash /b/a"},
		"no script":        {[]string{"/bin/sh", "-c"}, "/bin/sh"},
		"a script's file":  {[]string{"/bin/sh", "/x.sh"}, "/bin/sh /x.sh"},
		"heredoc":          {sh("cat <<EOF > /y\na; b\nEOF\nc"), "/bin/sh /b/cat /b/c"},
		"redirected":       {sh("a < /in > /out 2>&1"), "/bin/sh /b/a"},
		"no shell's":       {sh("a && ((((; b"), "/bin/sh"},
		"begins well":      {sh("a\nb\n((((; b"), "/bin/sh /b/a /b/b"},
		"dots":             {sh("/usr/bin/../bin/x //y"), "/bin/sh /usr/bin/x /y"},
		"patterns":         {sh("ls /x/*.c '' /a?"), "/bin/sh /b/ls"},
		"variables":        {sh("$CC -c; ${X}/y /z"), "/bin/sh /z"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, paths := range filesNamed(executor.Meta{Args: tc.args, Env: []string{"A=B", "PATH=/a:rel:/b"}, Cwd: "/src"}) {
				if len(paths) > 1 {
					require.Len(t, paths, 2)
					require.True(t, strings.HasPrefix(paths[0], "/a/"), paths)
				}
				got = append(got, paths[len(paths)-1])
			}
			require.Equal(t, tc.want, strings.Join(got, " "))
		})
	}
}

func TestFilesNamedHasBounds(t *testing.T) {
	many := strings.Repeat("x", 1000) + "; "
	for i := range 10_000 {
		many += "prog" + strings.Repeat("a", i%50) + string(rune('a'+i%26)) + "; "
	}
	got := filesNamed(executor.Meta{Args: []string{"/bin/sh", "-c", many}})
	require.Len(t, got, maxNamed)
	require.Equal(t, "/usr/local/sbin/proga", got[1][0], "without PATH, BuildKit's; and no name that can't be one")
	require.LessOrEqual(t, len(filesNamed(executor.Meta{Args: []string{"sh"}, Env: []string{"PATH=" + strings.Repeat("/x:", 10_000)}})[0]), maxPaths)
}

// FuzzFilesNamed: a command line is the client's.
func FuzzFilesNamed(f *testing.F) {
	for _, s := range []string{"", "a && b | c", "if x; then y; fi", "$(a `b`)", "<<E\nE", "((((", "a\x00b", "'", "case x in y) z;; esac", "{ a; }", "[[ -e /x ]]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, script string) {
		files := filesNamed(executor.Meta{Args: []string{"/bin/sh", "-c", script}, Cwd: "/"})
		if len(files) == 0 || len(files) > maxNamed {
			t.Fatalf("%d files", len(files))
		}
		for _, paths := range files {
			for _, p := range paths {
				if !strings.HasPrefix(p, "/") || len(p) > maxScript || strings.ContainsRune(p, 0) {
					t.Fatalf("path %q", p)
				}
			}
		}
	})
}

// TestFilesNamedDeep: nesting costs no more than the text is long.
func TestFilesNamedDeep(t *testing.T) {
	for _, s := range []string{"(", "$(", "`", "{ ", "if ", "while ", "((", "[[ ( ", "a=(", "\"$(", "<<E\n$(", "case x in (", "!", "a | ", "a && "} {
		filesNamed(executor.Meta{Args: []string{"/bin/sh", "-c", strings.Repeat(s, maxScript/len(s))}})
	}
}
