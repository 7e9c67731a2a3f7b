package layer

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIncluded(t *testing.T) {
	require.Equal(t, []string{"a.h", "bits/b.h", "c"}, included([]byte(
		"#include \"a.h\"\n  # include_next <bits/b.h> // more\r\n#include<c>\n#include MACRO\n// #include <d>\n#define include <e>\n#include <f\n")))
	require.Len(t, included([]byte(strings.Repeat("#include <a>\n", 2*maxNames))), maxNames)
}

func TestImported(t *testing.T) {
	require.Equal(t, []module{
		{0, "os/path"}, {0, "re"}, {0, "a"}, {0, "a/b"}, {0, "a/c"}, {1, "x"}, {2, "y"}, {2, "y/z"}, {0, "v"}, {0, "_fast"},
	}, imported([]byte(`"""import nothing"""
import os.path, re as r  # comment
from a import b as q, c
from . import x
from ..y import (z,
    w)
from v import *
try:
    from _fast import *
except ImportError:
    import slow
def f():
    import never
`)))
}

func TestPackages(t *testing.T) {
	require.Equal(t, []string{"fmt", "net/http", "x/y"}, packages([]byte(
		"// Package a\npackage a\nimport \"fmt\"\nimport (\n\tb \"net/http\" // HTTP\n\n\t_ \"x/y\"\n)\nfunc f() { g(\"no\") }\nimport \"late\"\n")))
	require.Empty(t, packages([]byte("//go:build ignore\n\npackage main\nimport \"fmt\"\n")))
	require.Len(t, packages([]byte("import (\n"+strings.Repeat("\"a\"\n", 2*maxNames))), maxNames)
}

func TestInterpreter(t *testing.T) {
	for _, tc := range [][3]string{
		{"#!/bin/sh -e\nx", "/bin/sh", "-e"},
		{"#! /usr/bin/env python3\n", "/usr/bin/env", "python3"},
		{"#!", "", ""},
		{"echo", "", ""},
		{"", "", ""},
	} {
		name, arg := interpreter([]byte(tc[0]))
		require.Equal(t, tc[1:], []string{name, arg}, tc[0])
	}
}

func TestOtherSystem(t *testing.T) {
	for name, want := range map[string]bool{
		"a.go": false, "a_linux.go": false, "a_unix_test.go": true, "a_windows_amd64.go": true, "windows.go": true,
	} {
		require.Equal(t, want, otherSystem(name), name)
	}
}

// FuzzSources looks for names in any bytes.
func FuzzSources(f *testing.F) {
	f.Add([]byte("#include <a>\nimport a.b\nfrom ..c import d\nimport (\n\"x\"\n)\n"))
	f.Add([]byte("#!/usr/bin/env x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, names := range [][]string{included(data), packages(data)} {
			if len(names) > maxNames {
				t.Fatalf("%d names", len(names))
			}
			for _, n := range names {
				if n == "" || len(n) > maxName {
					t.Fatalf("name %q", n)
				}
			}
		}
		modules := imported(data)
		if len(modules) > maxNames {
			t.Fatalf("%d modules", len(modules))
		}
		for _, m := range modules {
			if m.path == "" || len(m.path) > maxName || m.up < 0 {
				t.Fatalf("module %+v", m)
			}
		}
		interpreter(data)
	})
}
