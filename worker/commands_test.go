package worker

import (
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/executor"
	"github.com/stretchr/testify/require"
)

func TestFilesNamed(t *testing.T) {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	for name, tc := range map[string]struct {
		args []string
		want string // the last of each program's paths, those of files, sources, and texts
	}{
		"nothing":          {nil, "|||"},
		"exec form":        {[]string{"python3", "/app/x.py"}, "/b/python3|/app/x.py|/app/x.py|"},
		"relative":         {[]string{"./configure"}, "/src/configure|||"},
		"commands":         {sh("mkdir -p /out && cc -c x.c | tee y; make"), "/bin/sh /b/mkdir /b/cc /b/tee /b/make|/out|/src/x.c|"},
		"once":             {sh("a; a; a; a /x /x x.c x.c"), "/bin/sh /b/a /b/a|/x|/src/x.c|"},
		"blocks":           {sh("if test -e /x; then a; else b; fi; for i in 1 2; do c $i; done"), "/bin/sh /b/test /b/a /b/b /b/c|/x||"},
		"substitution":     {sh("x=$(date) `id` 'my prog'"), "/bin/sh /b/date /b/id|||"},
		"functions":        {sh("f() { a; }; f"), "/bin/sh /b/a /b/f|||"},
		"quoted":           {sh(`"a" 'b' "$c" "d"e`), "/bin/sh /b/a|||"},
		"wrappers":         {sh("exec env -i A=1 nice make; sudo -E apt-get update; time ls"), "/bin/sh /b/exec /b/env /b/nice /b/make /b/sudo /b/apt-get /b/ls|||"},
		"assignments":      {sh("A=1 B=2 cmd"), "/bin/sh /b/cmd|||"},
		"a program's text": {sh(`python3 -Ic 'import os; os.system("ls")'`), `/bin/sh /b/python3|||import os; os.system("ls")`},
		"a module":         {[]string{"python3", "-u", "-m", "pip", "-c"}, "/b/python3|||import pip"},
		"no text":          {sh("python3 x.py -c y; python3 -c; python3 -m"), "/bin/sh /b/python3 /b/python3 /b/python3||/src/x.py|"},
		"a package":        {sh("go build"), "/bin/sh /b/go||/src/|"},
		"packages":         {sh("go test -v ./... ./cmd/x/ /go/src/y"), "/bin/sh /b/go|/go/src/y|/src/ /src/cmd/x/ /go/src/y/|"},
		"no package":       {sh("go version; gofmt build"), "/bin/sh /b/go /b/gofmt|||"},
		"directories":      {sh("cd a && python3 x.py; cd /b; cc ../y.c; cd \"$X\"; cc z.c"), "/bin/sh /b/cd /b/python3 /b/cd /b/cc /b/cd /b/cc|/b|/src/a/x.py /y.c /b/z.c|"},
		"options":          {[]string{"/bin/bash", "-eo", "pipefail", "-c", "a"}, "/bin/bash /b/a|||"},
		"joined options":   {[]string{"bash", "-exc", "a"}, "/b/bash /b/a|||"},
		"no script":        {[]string{"/bin/sh", "-c"}, "/bin/sh|||"},
		"a script's file":  {[]string{"/bin/sh", "/x.sh"}, "/bin/sh|/x.sh||"},
		"heredoc":          {sh("cat <<EOF > /y\na; b\nEOF\nc"), "/bin/sh /b/cat /b/c|||"},
		"redirected":       {sh("a < /in > /out 2>&1"), "/bin/sh /b/a|||"},
		"no shell's":       {sh("a && ((((; b"), "/bin/sh|||"},
		"begins well":      {sh("a\nb\n((((; b"), "/bin/sh /b/a /b/b|||"},
		"dots":             {sh("/usr/bin/../bin/x //y"), "/bin/sh /usr/bin/x|/y||"},
		"patterns":         {sh("ls /x/*.c '' /a?"), "/bin/sh /b/ls|||"},
		"variables":        {sh("$CC -c; ${X}/y /z"), "/bin/sh|/z||"},
	} {
		t.Run(name, func(t *testing.T) {
			n := filesNamed(executor.Meta{Args: tc.args, Env: []string{"A=B", "PATH=/a:rel:/b"}, Cwd: "/src"})
			var programs, files, texts []string
			for _, c := range n.Commands {
				if len(c.Paths) > 1 {
					require.Len(t, c.Paths, 2)
					require.True(t, strings.HasPrefix(c.Paths[0], "/a/"), c.Paths)
				}
				programs = append(programs, c.Paths[len(c.Paths)-1])
			}
			for _, f := range n.Files {
				require.Len(t, f, 1)
				files = append(files, f[0])
			}
			for _, s := range n.Sources {
				texts = append(texts, string(s.Text))
			}
			join := func(list []string) string { return strings.Join(list, " ") }
			require.Equal(t, tc.want, join(programs)+"|"+join(files)+"|"+join(n.sources)+"|"+join(texts))
		})
	}
	n := filesNamed(executor.Meta{Args: sh("GOOS=linux go build -o /x $FLAGS .")})
	require.Equal(t, []string{"build", "-o", "/x", "-", "."}, n.Commands[1].Args)
}

func TestFilesNamedHasBounds(t *testing.T) {
	many := strings.Repeat("x", 1000) + "; "
	for i := range 10_000 {
		many += "prog" + strings.Repeat("a", i%50) + string(rune('a'+i%26)) + "; "
	}
	got := filesNamed(executor.Meta{Args: []string{"/bin/sh", "-c", many}})
	require.Len(t, got.Commands, maxNamed)
	require.Equal(t, "/usr/local/sbin/proga", got.Commands[1].Paths[0], "without PATH, BuildKit's; and no name that can't be one")
	require.LessOrEqual(t, len(filesNamed(executor.Meta{Args: []string{"sh"}, Env: []string{"PATH=" + strings.Repeat("/x:", 10_000)}}).Commands[0].Paths), maxPaths)
	got = filesNamed(executor.Meta{Args: append([]string{"cc"}, strings.Fields(strings.Repeat("/a/x.c /a/y ", 100)+strings.Repeat("z", 100_000)+".c")...)})
	require.LessOrEqual(t, len(got.Files)+len(got.sources), 3)
	require.Empty(t, filesNamed(executor.Meta{Args: []string{"python3", "-c", strings.Repeat("x", maxScript+1)}}).Sources)
}

// FuzzFilesNamed: a command line is the client's.
func FuzzFilesNamed(f *testing.F) {
	for _, s := range []string{"", "a && b | c", "cd ../.. && go test ./x", "python3 -c x; cc /y.c", "if x; then y; fi", "$(a `b`)", "<<E\nE", "((((", "a\x00b", "'", "case x in y) z;; esac", "{ a; }", "[[ -e /x ]]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, script string) {
		n := filesNamed(executor.Meta{Args: []string{"/bin/sh", "-c", script}, Cwd: "/"})
		if all := len(n.Files) + len(n.Commands) + len(n.sources); all == 0 || all > maxNamed {
			t.Fatalf("%d names", all)
		}
		paths := slices.Concat(slices.Concat(n.Files...), n.sources)
		for _, c := range n.Commands {
			paths = append(paths, c.Paths...)
		}
		for _, p := range paths {
			if !strings.HasPrefix(p, "/") || len(p) > 2*maxScript || strings.ContainsRune(p, 0) {
				t.Fatalf("path %q", p)
			}
		}
		size := 0
		for _, s := range n.Sources {
			size += len(s.Text)
		}
		if size > maxScript {
			t.Fatalf("%d bytes of sources", size)
		}
	})
}

// TestFilesNamedDeep: nesting costs no more than the text is long.
func TestFilesNamedDeep(t *testing.T) {
	for _, s := range []string{"(", "$(", "`", "{ ", "if ", "while ", "((", "[[ ( ", "a=(", "\"$(", "<<E\n$(", "case x in (", "!", "a | ", "a && "} {
		filesNamed(executor.Meta{Args: []string{"/bin/sh", "-c", strings.Repeat(s, maxScript/len(s))}})
	}
}
