package layer

import (
	"context"
	"path"
	"slices"
)

// Wants are what a process will probably read, as far as its command line says.
type Wants struct {
	Files    [][]string // of each the paths where it may lie, in their order
	Commands []Command
	Sources  []Source
}

// Command is a program that will be run.
type Command struct {
	Paths []string // where it may lie, in their order
	Args  []string // that it is given, as far as they are known; "-" stands for one that is not
}

// Source is a program's text. Its name says by the extension what language it is in; it need
// not be a file of the layer.
type Source struct {
	Name string
	Text []byte
}

// everywhere is what nearly every process reads at its start: who its user is, the shell, the
// loader, and the C library.
var everywhere = [][]string{
	{"/etc/passwd"}, {"/etc/group"}, {"/bin/sh"},
	{"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1"},
	{"/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"},
}

// Want wishes for what a process in the layer's image will probably read soon, and for what
// every process reads. It waits for nothing, and asks for nothing more when ctx has ended.
func (l *Layer) Want(ctx context.Context, w Wants) {
	l.start(func() {
		im, release := l.image()
		defer release()
		for _, paths := range slices.Concat(everywhere, w.Files) {
			if ctx.Err() != nil {
				return
			}
			im.want(byCommand, paths...)
		}
		for _, c := range w.Commands {
			if ctx.Err() != nil {
				return
			}
			im.wantCommand(c)
		}
		im.wantSources(ctx, w.Sources)
	})
}

// WantSources wishes for what sources name that a process will probably read soon.
func (l *Layer) WantSources(ctx context.Context, sources []Source) {
	l.start(func() {
		im, release := l.image()
		defer release()
		im.wantSources(ctx, sources)
	})
}

// wantCommand wishes for a command's program, with the libraries and other files that it is
// known to need.
func (im image) wantCommand(c Command) {
	for _, p := range c.Paths {
		at, ok := im.file(p)
		if !ok {
			continue
		}
		at.layer.wish(byCommand, at.inode)
		real, ok := at.layer.pathOf(at.inode)
		if !ok {
			return
		}
		im.wantCompanions(path.Base(p), real, at)
		at.layer.followKnown(im, real)
		if path.Base(real) == "go" && len(c.Args) > 0 && slices.Contains(goBuilds, c.Args[0]) {
			im.wantGoTools(path.Dir(path.Dir(real)))
			im.want(byHabit, "/etc/localtime")
		}
		return
	}
}

// goBuilds are commands of Go that compile and link.
var goBuilds = []string{"build", "install", "run", "test"}

// wantGoTools wishes for the programs that the command of a Go installation runs.
func (im image) wantGoTools(root string) {
	tools, ok := im.find(root + "/pkg/tool")
	if !ok {
		return
	}
	for _, machine := range tools.names(maxVersions) {
		for _, name := range []string{"compile", "asm", "cgo", "link"} {
			if at, ok := im.file(path.Join(root, "pkg/tool", machine, name)); ok {
				at.layer.wishAll(byCommand, at.inode)
			}
		}
	}
}

// wantSources wishes for what sources name, in the layers that have it.
func (im image) wantSources(ctx context.Context, sources []Source) {
	for _, s := range sources {
		if ctx.Err() != nil {
			return
		}
		switch ext := path.Ext(s.Name); ext {
		case ".py":
			for _, l := range im {
				if l.hasPython() {
					l.followModule(im, path.Dir(s.Name), s.Text)
				}
			}
		case ".c", ".h", ".cc", ".cpp", ".cxx", ".c++", ".C", ".hh", ".hpp", ".hxx":
			im.wantIncluded(s.Text, ext != ".c")
		case ".go":
			im.wantImported(s.Text)
		}
	}
}

// wantIncluded wishes for the headers of the system that a source includes. plus: it may be C++.
func (im image) wantIncluded(text []byte, plus bool) {
	from := "/usr/include/main"
	if versions, ok := im.find("/usr/include/c++"); ok && plus {
		for _, v := range versions.names(1) {
			from = path.Join("/usr/include/c++", v, "main")
		}
	}
	dirs := includeDirs(im, from)
	for _, name := range included(text) {
		im.want(byInclude, joinAll(dirs, name)...)
	}
}

// wantImported wishes for the packages of Go's own library that a source imports.
func (im image) wantImported(text []byte) {
	for _, root := range []string{"/usr/local/go", "/usr/lib/go", "/usr/lib/golang"} {
		at, ok := im.find(root + "/src")
		if !ok {
			continue
		}
		for _, name := range packages(text) {
			if im.wantPackage(root + "/src/" + name) {
				at.layer.wishes.imported(name)
			}
		}
		return
	}
}

// hasPython says whether it is known where modules are.
func (l *Layer) hasPython() bool {
	l.python.Lock()
	defer l.python.Unlock()
	return len(l.python.roots) > 0
}
