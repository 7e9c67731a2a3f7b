package layer

import (
	"bytes"
	"path"
	"strings"
)

// Sources name each other: a header those that it includes, a module of Python
// those that it imports, a file of Go its packages. Compilers and interpreters open
// them one after the other, each as soon as it has read the line; all lines can be
// had from the first.

// maxScanned is how much of a source is looked at. Most names come early.
const maxScanned = 256 << 10

// maxNames bounds the names taken from one file.
const maxNames = 256

// lines calls f with each line of data until it returns false.
func lines(data []byte, f func(line []byte) bool) {
	data = data[:min(len(data), maxScanned)]
	for line := range bytes.Lines(data) {
		if !f(bytes.TrimRight(line, "\r\n")) {
			return
		}
	}
}

// word cuts what a line begins with, up to a blank.
func word(line []byte) (first, rest []byte) {
	line = bytes.TrimLeft(line, " \t")
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		return line[:i], bytes.TrimLeft(line[i:], " \t")
	}
	return line, nil
}

// included lists the names that a source of C or C++ includes.
func included(data []byte) (names []string) {
	lines(data, func(line []byte) bool {
		rest, ok := bytes.CutPrefix(bytes.TrimLeft(line, " \t"), []byte("#"))
		if !ok {
			return true
		}
		rest, ok = bytes.CutPrefix(bytes.TrimLeft(rest, " \t"), []byte("include"))
		if !ok {
			return true
		}
		rest = bytes.TrimLeft(bytes.TrimPrefix(rest, []byte("_next")), " \t")
		if len(rest) < 2 || rest[0] != '<' && rest[0] != '"' {
			return true
		}
		if end := bytes.IndexAny(rest[1:], ">\""); end > 0 && end <= maxName {
			names = append(names, string(rest[1:1+end]))
		}
		return len(names) < maxNames
	})
	return names
}

// module is what a line of Python imports.
type module struct {
	up   int    // 0: from the search path; n: from the n-th directory above the file
	path string // a/b for a.b
}

// imported lists the modules that a source of Python imports when it is imported
// itself: at the top, on trial, or where a condition does not hold, as packages do that
// build themselves by the same file, but not within a function. What
// follows "from a import" may be names of a or modules in it.
func imported(data []byte) (modules []module) {
	add := func(up int, dotted string) {
		if dotted = strings.ReplaceAll(dotted, ".", "/"); dotted != "" && len(dotted) <= maxName && len(modules) < maxNames {
			modules = append(modules, module{up, dotted})
		}
	}
	trial := false
	lines(data, func(line []byte) bool {
		verb, rest := word(line)
		switch indented := len(verb) < len(line) && (line[0] == ' ' || line[0] == '\t'); {
		case len(verb) == 0, indented && !trial:
			return true
		case !indented:
			trial = string(verb) == "try:" || string(verb) == "else:"
		}
		line, _, _ = bytes.Cut(rest, []byte("#"))
		switch string(verb) {
		case "import":
			for name := range bytes.SplitSeq(line, []byte(",")) {
				first, _ := word(name)
				add(0, string(first))
			}
		case "from":
			from, rest := word(line)
			base := strings.TrimLeft(string(from), ".")
			up := len(from) - len(base)
			add(up, base)
			verb, rest := word(rest)
			if string(verb) != "import" {
				return true
			}
			for name := range bytes.SplitSeq(bytes.Trim(rest, "()\\ \t"), []byte(",")) {
				if first, _ := word(name); len(first) > 0 && first[0] != '*' {
					add(up, path.Join(base, string(first)))
				}
			}
		}
		return len(modules) < maxNames
	})
	return modules
}

// packages lists the packages that a source of Go imports.
func packages(data []byte) (names []string) {
	block := false
	lines(data, func(line []byte) bool {
		first, rest := word(line)
		switch {
		case string(line) == "//go:build ignore":
			return false // a tool that made others, not a part of its package
		case block && bytes.HasPrefix(first, []byte(")")):
			block = false
			return true
		case block:
			rest = line
		case string(first) != "import":
			return len(names) == 0 || !bytes.HasPrefix(line, []byte("func"))
		case bytes.HasPrefix(rest, []byte("(")):
			block = true
		}
		if _, name, ok := bytes.Cut(rest, []byte(`"`)); ok {
			if end := bytes.IndexByte(name, '"'); end > 0 && end <= maxName {
				names = append(names, string(name[:end]))
			}
		}
		return len(names) < maxNames
	})
	return names
}

// interpreter is what the first line of a script names, and its first argument.
func interpreter(data []byte) (name, arg string) {
	line, ok := bytes.CutPrefix(data[:min(len(data), maxName)], []byte("#!"))
	if !ok {
		return "", ""
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	first, rest := word(line)
	second, _ := word(rest)
	return string(first), string(second)
}
