package layer

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz/estargztest"
)

// What a source names is wished for in the layers that have it, though the source lies in none.
func TestWantSources(t *testing.T) {
	const py = "usr/lib/python3.9/"
	entries := []estargztest.Entry{
		alone("usr/bin/python3.9", string(elf("/lib/ld.so", ""))), estargztest.Symlink("usr/bin/python3", "python3.9"),
		alone(py+"json/__init__.py", "from . import decoder\n"), alone(py+"json/decoder.py", ""), alone(py+"os.py", ""), alone(py+"other.py", ""),
		alone("usr/include/c++/12/map", "#include <bits/tree.h>\n"), alone("usr/include/c++/12/bits/tree.h", ""), alone("usr/include/c++/12/set", ""),
		alone("usr/include/stdio.h", ""), alone("usr/include/local.h", ""), alone("usr/include/inner.h", ""),
		estargztest.Symlink("usr/lib/go", "go-1.19"), estargztest.Symlink("usr/lib/go-1.19/src", "../../share/go-1.19/src"),
		alone("usr/share/go-1.19/src/fmt/print.go", "package fmt\nimport \"io\"\n"), alone("usr/share/go-1.19/src/io/io.go", ""), alone("usr/share/go-1.19/src/net/net.go", ""),
	}
	for name, tc := range map[string]struct {
		source Source
		come   []string
	}{
		"python":   {Source{"main.py", []byte("import json\nimport app\n")}, []string{py + "json/__init__.py", py + "json/decoder.py"}},
		"c++":      {Source{"a/main.cpp", []byte("#include <map>\n#include \"mine.h\"\n#  include <stdio.h>\n")}, []string{"usr/include/c++/12/map", "usr/include/c++/12/bits/tree.h", "usr/include/stdio.h"}},
		"c":        {Source{"main.c", []byte("#include <stdio.h>\n#include <map>\n")}, []string{"usr/include/stdio.h"}},
		"go":       {Source{"main.go", []byte("package main\nimport (\n\"fmt\"\n\"example.com/x\"\n)\n")}, []string{"usr/share/go-1.19/src/fmt/print.go"}},
		"another":  {Source{"main.rs", []byte("import json\n#include <map>\n")}, nil},
		"nothing":  {Source{"", nil}, nil},
		"no text":  {Source{"main.go", nil}, nil},
		"unending": {Source{"main.c", []byte("#include <")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			image := openImage(t, []estargztest.Entry{alone("etc/os-release", "")}, entries)
			image[0].Want(t.Context(), Wants{Commands: []Command{{Paths: []string{"/usr/bin/python3"}}}})
			image[1].come(0, "usr/bin/python3.9")
			image[0].WantSources(t.Context(), []Source{tc.source})
			image[1].come(0, tc.come...)
			for _, p := range []string{py + "other.py", "usr/include/c++/12/set", "usr/include/local.h", "usr/share/go-1.19/src/net/net.go"} {
				require.False(t, image[1].has(p), p)
			}
		})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	o := openImage(t, entries)[0]
	o.WantSources(ended, []Source{{"main.c", []byte("#include <stdio.h>\n")}})
	require.Empty(t, o.blob.requests())
}

// The text of a program that an interpreter is named in is a source as well.
func TestScriptIsASource(t *testing.T) {
	const py = "usr/lib/python3.9/"
	o := openImage(t, []estargztest.Entry{
		alone("usr/bin/python3.9", string(elf("/lib/ld.so", ""))), alone(py+"json.py", ""), alone(py+"os.py", ""),
		alone("usr/bin/tool", "#!/usr/bin/python3.9 -I\nimport json\n"),
	})[0]
	o.Want(t.Context(), Wants{Commands: []Command{{Paths: []string{"/usr/bin/python3.9"}}, {Paths: []string{"/usr/bin/tool"}}}})
	o.come(0, "usr/bin/tool", "usr/bin/python3.9", py+"json.py")
}

// Go's command runs programs of its own, when it builds something.
func TestGoTools(t *testing.T) {
	const tools = "usr/lib/go-1.19/pkg/tool/linux_amd64/"
	open := func() *opened {
		return openImage(t, []estargztest.Entry{
			alone("usr/lib/go-1.19/bin/go", ""), estargztest.Symlink("usr/bin/go", "../lib/go-1.19/bin/go"),
			alone(tools+"compile", ""), alone(tools+"link", ""), alone(tools+"pprof", ""),
		})[0]
	}
	o := open()
	o.Want(t.Context(), Wants{Commands: []Command{{Paths: []string{"/usr/bin/go"}, Args: []string{"build", "."}}}})
	o.come(0, "usr/lib/go-1.19/bin/go", tools+"compile", tools+"link")
	require.False(t, o.has(tools+"pprof"))
	o = open()
	o.Want(t.Context(), Wants{Commands: []Command{{Paths: []string{"/usr/bin/go"}, Args: []string{"version"}}}})
	o.come(0, "usr/lib/go-1.19/bin/go")
	require.False(t, o.has(tools+"compile"))
}
