package worker

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/util/system"
	"mvdan.cc/sh/v3/syntax"
)

// Bounds of what is looked for in a command line.
const (
	maxScript = 8 << 10 // bytes; what follows is left out. Nesting costs some kilobytes a byte
	maxNamed  = 64      // files
	maxPaths  = 16      // directories of PATH
)

// wrappers run the program that their arguments name.
var wrappers = []string{"command", "env", "exec", "nice", "nohup", "stdbuf", "sudo", "time", "timeout", "xargs"}

// filesNamed lists the files that a process names on its command line and will
// probably read: programs, also those of a script that a shell is given, and paths. Each
// is the paths where it may lie, in their order. It is a guess: what is quoted, set by a
// variable or found out at run time is not seen.
func filesNamed(m executor.Meta) (files [][]string) {
	if len(m.Args) == 0 {
		return nil
	}
	n := namer{dirs: searchPath(m.Env), cwd: m.Cwd}
	n.program(m.Args[0])
	if script, ok := shellScript(m.Args); ok {
		n.script(script)
	} else {
		n.arguments(m.Args[1:])
	}
	return n.files
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
	return slices.DeleteFunc(dirs[:min(len(dirs), maxPaths)], func(d string) bool { return !path.IsAbs(d) })
}

// namer collects files.
type namer struct {
	dirs  []string
	cwd   string
	files [][]string
}

func (n *namer) add(paths ...string) {
	if len(n.files) < maxNamed && len(paths) > 0 && !slices.ContainsFunc(n.files, func(f []string) bool { return f[0] == paths[0] }) {
		n.files = append(n.files, paths)
	}
}

// program adds one by its name or path.
func (n *namer) program(name string) {
	switch {
	case !plausible(name):
	case path.IsAbs(name):
		n.add(path.Clean(name))
	case strings.Contains(name, "/"):
		n.add(path.Join("/", n.cwd, name))
	default:
		paths := make([]string, len(n.dirs))
		for i, d := range n.dirs {
			paths[i] = path.Join(d, name)
		}
		n.add(paths...)
	}
}

// plausible says whether it may be a file's name.
func plausible(name string) bool {
	return name != "" && len(name) < 256 && name[0] != '-' && !strings.ContainsAny(name, "\x00\n*?[")
}

// arguments adds paths.
func (n *namer) arguments(args []string) {
	for _, a := range args {
		if path.IsAbs(a) && plausible(a) {
			n.add(path.Clean(a))
		}
	}
}

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
		return len(n.files) < maxNamed
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
		n.program(name)
		n.arguments(args[1:])
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
