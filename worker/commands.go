package worker

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/util/system"
	"mvdan.cc/sh/v3/syntax"

	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// Bounds of what is looked for in a command line.
const (
	maxScript = 8 << 10 // bytes; what follows is left out. Nesting costs some kilobytes a byte
	maxNamed  = 64      // files, programs and sources
	maxPaths  = 16      // directories of PATH
	maxPath   = 4096    // bytes of a directory's path: PATH_MAX
)

// wrappers run the program that their arguments name.
var wrappers = []string{"command", "env", "exec", "nice", "nohup", "stdbuf", "sudo", "time", "timeout", "xargs"}

// named is what a process names on its command line.
type named struct {
	layer.Wants
	// sources are the paths of programs' texts. One that ends with a slash is a directory
	// whose sources of Go are meant.
	sources []string
}

// filesNamed lists what a process names on its command line and will probably read: programs,
// also those of a script that a shell is given, paths, and sources. It is a guess: what is
// set by a variable, given to another shell or found out at run time is not seen.
func filesNamed(m executor.Meta) named {
	if len(m.Args) == 0 {
		return named{}
	}
	n := namer{dirs: searchPath(m.Env), cwd: "/"}
	if len(m.Cwd) < maxPath {
		n.cwd = path.Join("/", m.Cwd)
	}
	script, isShell := shellScript(m.Args)
	if isShell {
		n.program(m.Args[0], nil)
		n.script(script)
	} else {
		n.command(m.Args)
	}
	return n.named
}

// shellScript returns what a shell's -c has.
func shellScript(args []string) (script string, ok bool) {
	switch path.Base(args[0]) {
	case "sh", "bash", "dash", "ash", "zsh", "ksh":
	default:
		return "", false
	}
	for i, a := range args[1:] {
		// Options may be written in one, as in -eo pipefail -c and -exc.
		if strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && strings.HasSuffix(a, "c") && i+2 < len(args) {
			return args[i+2], true
		}
	}
	return "", false
}

// searchPath is PATH, or BuildKit's.
func searchPath(env []string) []string {
	list := system.DefaultPathEnvUnix
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	dirs := strings.Split(list, ":")
	return slices.DeleteFunc(dirs[:min(len(dirs), maxPaths)], func(d string) bool { return !path.IsAbs(d) || len(d) >= maxPath })
}

// namer collects what is named.
type namer struct {
	named
	dirs []string
	cwd  string
	text int // bytes of sources that the command line has
}

func (n *namer) full() bool { return len(n.Files)+len(n.Commands)+len(n.sources) >= maxNamed }

// abs is a path as seen from the root.
func (n *namer) abs(p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join(n.cwd, p)
}

// file adds a path.
func (n *namer) file(p string) {
	if !n.full() && !slices.ContainsFunc(n.Files, func(f []string) bool { return f[0] == p }) {
		n.Files = append(n.Files, []string{p})
	}
}

// program adds one by its name or path.
func (n *namer) program(name string, args []string) {
	var paths []string
	switch {
	case !plausible(name) || n.full():
		return
	case strings.Contains(name, "/"):
		paths = []string{n.abs(name)}
	default:
		for _, d := range n.dirs {
			paths = append(paths, path.Join(d, name))
		}
	}
	known := func(c layer.Command) bool { return slices.Equal(c.Paths, paths) && slices.Equal(c.Args, args) }
	if len(paths) > 0 && !slices.ContainsFunc(n.Commands, known) {
		n.Commands = append(n.Commands, layer.Command{Paths: paths, Args: args})
	}
}

// command adds a program with what its arguments name.
func (n *namer) command(args []string) {
	n.program(args[0], args[1:])
	n.arguments(args[1:])
	switch name := path.Base(args[0]); {
	case strings.HasPrefix(name, "python"):
		n.python(args[1:])
	case name == "go" && len(args) > 1 && slices.Contains([]string{"build", "install", "run", "test", "vet"}, args[1]):
		n.packages(args[2:])
	}
}

// python adds the source that an interpreter is given, or the module.
func (n *namer) python(args []string) {
	for i, a := range args[:max(len(args)-1, 0)] {
		switch {
		case strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && strings.HasSuffix(a, "c"):
			n.source("-c.py", args[i+1])
			return
		case a == "-m":
			n.source("-m.py", "import "+args[i+1])
			return
		case !strings.HasPrefix(a, "-"):
			return // a file, which arguments has seen
		}
	}
}

// source adds a source that is on the command line.
func (n *namer) source(name, text string) {
	if n.text += len(text); n.text <= maxScript {
		n.Sources = append(n.Sources, layer.Source{Name: name, Text: []byte(text)})
	}
}

// packages adds the directories of packages of Go.
func (n *namer) packages(args []string) {
	found := false
	for _, a := range args {
		dir, _ := strings.CutSuffix(a, "...")
		if path.IsAbs(dir) || strings.HasPrefix(dir, "./") || dir == "." {
			n.sourcePath(dir + "/")
			found = true
		}
	}
	if !found {
		n.sourcePath("./")
	}
}

// sourcePath adds the path of a source, or of a directory of sources.
func (n *namer) sourcePath(p string) {
	at := n.abs(p)
	if strings.HasSuffix(p, "/") {
		at = strings.TrimSuffix(at, "/") + "/"
	}
	if plausible(p) && !n.full() && !slices.Contains(n.sources, at) {
		n.sources = append(n.sources, at)
	}
}

// plausible says whether it may be a file's name.
func plausible(name string) bool {
	return name != "" && len(name) < 256 && name[0] != '-' && !strings.ContainsAny(name, "\x00\n*?[")
}

// arguments adds paths, and sources.
func (n *namer) arguments(args []string) {
	for _, a := range args {
		if path.IsAbs(a) && plausible(a) {
			n.file(path.Clean(a))
		}
		if slices.Contains(sourceExts, path.Ext(a)) {
			n.sourcePath(a)
		}
	}
}

// sourceExts are extensions of sources that are looked into.
var sourceExts = []string{".py", ".go", ".c", ".cc", ".cpp", ".cxx", ".C"}

// script adds what the commands of a script name, up to the first that is no script of a
// shell.
func (n *namer) script(text string) {
	text = text[:min(len(text), maxScript)]
	// Errors are the shell's to report.
	_ = syntax.NewParser().Stmts(strings.NewReader(text), func(s *syntax.Stmt) bool {
		syntax.Walk(s, func(node syntax.Node) bool {
			if call, ok := node.(*syntax.CallExpr); ok {
				n.call(call)
			}
			return true
		})
		return !n.full()
	})
}

func (n *namer) call(c *syntax.CallExpr) {
	var args []string
	for _, w := range c.Args {
		a, ok := literal(w)
		if !ok {
			a = "-" // there is something
		}
		args = append(args, a)
	}
	for len(args) > 0 {
		name := args[0]
		n.command(args)
		if name == "cd" && len(args) > 1 && plausible(args[1]) && len(n.cwd) < maxPath {
			n.cwd = n.abs(args[1])
		}
		if !slices.Contains(wrappers, name) {
			return
		}
		next := slices.IndexFunc(args[1:], func(a string) bool { return !strings.HasPrefix(a, "-") && !strings.Contains(a, "=") })
		if next < 0 {
			return
		}
		args = args[1+next:]
	}
}

// literal is the value of a word without expansions.
func literal(w *syntax.Word) (string, bool) {
	var b strings.Builder
	for _, p := range w.Parts {
		switch p := p.(type) {
		case *syntax.Lit:
			b.WriteString(p.Value)
		case *syntax.SglQuoted:
			b.WriteString(p.Value)
		case *syntax.DblQuoted:
			for _, q := range p.Parts {
				lit, ok := q.(*syntax.Lit)
				if !ok {
					return "", false
				}
				b.WriteString(lit.Value)
			}
		default:
			return "", false
		}
	}
	return b.String(), true
}
