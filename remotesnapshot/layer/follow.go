package layer

import (
	"bytes"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// Reads come one after the other because a process learns only from one file what
// the next will be. What it learns, the layer can see as well: whatever is
// decompressed is looked into for the names of other files, and those are wished
// for (wishes.go), which are looked into in their turn. Nothing depends on a name
// being right: a wrong one costs bytes, of which there are bounds.

// triplets name the directories of a machine on Debian and its descendants.
var triplets = []struct {
	machine uint16
	name    string
}{
	{62, "x86_64-linux-gnu"},
	{183, "aarch64-linux-gnu"},
}

// python is what was seen of how an image lays out its modules.
type python struct {
	sync.Mutex
	roots []string // directories that modules are looked for in
	tag   string   // "cpython-311" of compiled modules
}

// add notes where modules are, and what is in the names of compiled ones.
func (py *python) add(tag string, roots []string) {
	py.Lock()
	defer py.Unlock()
	py.tag = tag
	for _, d := range roots {
		if !slices.Contains(py.roots, d) && len(py.roots) < maxRoots {
			py.roots = append(py.roots, d)
		}
	}
}

// maxRoots bounds the directories that modules are looked for in.
const maxRoots = 8

// look decompresses the beginning of a file that was wished for, for its names.
// What Go's tools read names nothing that is not known already, or too much.
func (l *Layer) look(inode uint32) {
	if l.wishes.wasFollowed(inode) {
		return
	}
	p, ok := l.pathOf(inode)
	if !ok || slices.Contains([]string{".pyc", ".go", ".s", ".a"}, path.Ext(p)) {
		return
	}
	// Nobody waits: who will read the file meets the error.
	_ = l.peek(inode, nil, 0)
}

// peek fills dst from byte off of a file, which nobody waits for. It is
// decompressed also for an empty dst.
func (l *Layer) peek(inode uint32, dst []byte, off int64) error {
	for first := true; first || len(dst) > 0; first = false {
		c, err := l.toc.FindChunk(inode, off)
		if err != nil {
			return err
		}
		var chunk estargz.Chunk
		if err := l.toc.Chunk(c, &chunk); err != nil {
			return err
		}
		n := 0
		take := func(data []byte) { n = copy(dst, data[min(off-chunk.FileOffset, int64(len(data))):]) }
		if b := l.pool.cache.get(chunkKey{l.id, c}); b != nil {
			take(b.data)
			b.release()
		} else if chunk.Zeros {
			n = int(min(int64(len(dst)), chunk.FileOffset+chunk.Size-off))
			clear(dst[:n])
		} else if err := l.load(l.ctx, need{chunk: c, size: chunk.Size, member: chunk.Member, upTo: chunk.Member, ahead: true}, take); err != nil {
			return err
		}
		if n == 0 && len(dst) > 0 {
			return estargz.ErrCorrupt
		}
		dst, off = dst[n:], off+int64(n)
	}
	return nil
}

// maxDirectory is the most entries of a directory in which names are looked for: to
// find a file's name takes a look at all of its directory.
const maxDirectory = 16 << 10

// pathOf is the path of a file, unless that takes long to find.
func (l *Layer) pathOf(inode uint32) (p string, ok bool) {
	var node estargz.Inode
	for i := inode; i != estargz.Root; {
		dir, err := l.toc.Parent(i)
		if err != nil || l.toc.Inode(dir, &node) != nil || node.Entries > maxDirectory {
			return "", false
		}
		i = dir
	}
	p, err := l.toc.Path(inode)
	return p, err == nil
}

// follow looks into the first chunk of a file.
func (l *Layer) follow(inode uint32, data []byte) {
	if !l.wishes.followed(inode) {
		return
	}
	p, ok := l.pathOf(inode)
	if !ok {
		return
	}
	dir, ext := path.Dir(p), path.Ext(p)
	if isProgram(data) {
		l.followProgram(inode, p)
		return
	}
	im, release := l.image()
	defer release()
	switch {
	case p == "/etc/passwd":
		// Who enters a container looks up its user, then runs a shell.
		im.want(byHabit, "/etc/group")
		im.want(byHabit, "/bin/sh")
	case ext == ".pyc":
		l.followCompiled(inode)
	case ext == ".py":
		l.followModule(im, dir, data)
	case ext == ".go":
		l.followPackages(im, p, data)
	case ext == ".a":
		l.followArchive(im, dir)
	case strings.Contains(dir, "/include") && (ext == "" || strings.HasPrefix(ext, ".h") || ext == ".tcc" || ext == ".inl"):
		l.followHeader(im, p, data)
	case bytes.HasPrefix(data, []byte(linkerScript)):
		followScript(im, data)
	default:
		name, arg := interpreter(data)
		if name != "" {
			im.want(byProgram, name)
		}
		if path.Base(name) == "env" && arg != "" {
			im.want(byProgram, "/usr/local/bin/"+arg, "/usr/bin/"+arg)
			name = arg
		}
		if strings.HasPrefix(path.Base(name), "python3") {
			im.wantSources(l.ctx, []Source{{p + ".py", data}})
		}
	}
}

// want wishes for the first of some paths that there is.
func (im image) want(c clue, paths ...string) bool {
	for _, p := range paths {
		if at, ok := im.file(p); ok {
			at.layer.wish(c, at.inode)
			return true
		}
	}
	return false
}

// followProgram wishes for the loader and the libraries of a program, and for
// what the loader reads of one that is too large to be fetched as a whole.
func (l *Layer) followProgram(inode uint32, name string) {
	read := func(dst []byte, off int64) error { return l.peek(inode, dst, off) }
	p, segments, ok := readProgram(read)
	if !ok {
		return
	}
	l.wishParts(inode, p.early)
	if p.interp != "" {
		im, release := l.image()
		im.want(byProgram, p.interp)
		release()
	}
	readNeeded(&p, segments, read)
	im, release := l.image() // not while something is read, which may take long
	defer release()
	var dirs []string
	origin := path.Dir(name)
	for d := range strings.SplitSeq(p.runPath, ":") {
		if d = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(d); path.IsAbs(d) && len(dirs) < maxRoots {
			dirs = append(dirs, d)
		}
	}
	for _, t := range triplets {
		if t.machine == p.machine {
			dirs = append(dirs, "/usr/lib/"+t.name, "/lib/"+t.name)
		}
	}
	dirs = append(dirs, "/usr/local/lib", "/usr/lib64", "/lib64", "/usr/lib", "/lib")
	for _, name := range p.needed {
		im.wantLibrary(byProgram, dirs, name)
	}
	if p.interp != "" {
		l.wishProgram(inode)
	}
	l.followKnown(im, name)
}

// followKnown wishes for what some programs and libraries read that do not name it where
// the loader looks.
func (l *Layer) followKnown(im image, p string) {
	name := path.Base(p)
	if match := driverName.FindStringSubmatch(name); match != nil {
		im.wantDriven(path.Dir(path.Dir(p)), strings.HasSuffix(match[1], "++"))
	}
	if match := pythonName.FindStringSubmatch(name); match != nil {
		l.startPython(im, path.Dir(path.Dir(p)), match[1])
	}
	im.wantHabits(name)
}

// pythonName matches an interpreter, and its minor version.
var pythonName = regexp.MustCompile(`^python3\.([0-9]{1,3})$`)

// startPython wishes for what an interpreter of Python 3 reads before the first line of a
// program, and notes where it looks for modules.
func (l *Layer) startPython(im image, prefix, minor string) {
	version, tag := "python3."+minor, "cpython-3"+minor
	lib := prefix + "/lib/" + version
	var roots []string
	for _, d := range []string{lib, prefix + "/lib/python3/dist-packages", "/usr/local/lib/" + version + "/dist-packages", lib + "/site-packages"} {
		if at, ok := im.find(d); ok && at.mode == unix.S_IFDIR {
			roots = append(roots, d)
		}
	}
	l.python.add(tag, roots)
	modules := []string{"encodings", "encodings/aliases", "encodings/utf_8", "sitecustomize"}
	if n, err := strconv.Atoi(minor); err == nil && n < 11 { // part of the interpreter since then
		modules = append(modules, "codecs", "io", "abc", "site", "os", "stat", "posixpath", "genericpath", "_collections_abc", "_sitebuiltins")
	}
	for _, m := range modules {
		im.wantModule(lib+"/"+m, tag)
	}
	for _, t := range triplets {
		im.want(byHabit, "/usr/lib/"+t.name+"/gconv/gconv-modules.cache")
	}
	im.want(byHabit, "/usr/lib/locale/C.utf8/LC_CTYPE")
	im.want(byHabit, "/etc/localtime")
}

// driverName matches what GCC's drivers are called: g++, x86_64-linux-gnu-gcc-12.
var driverName = regexp.MustCompile(`^(?:[a-z0-9_]+-)*(gcc|g\+\+|cc|c\+\+)(?:-[0-9.]+)?$`)

// maxVersions bounds the compilers that are looked at.
const maxVersions = 4

// wantDriven wishes for what a compiler of GCC's below prefix runs and links: the compiler
// proper, the assembler, the linker, each of which would be waited for when the one before
// it has ended. plus: for C++.
func (im image) wantDriven(prefix string, plus bool) {
	proper := "cc1"
	if plus {
		proper = "cc1plus"
	}
	im.want(byDriver, "/usr/include/stdc-predef.h")
	for _, name := range []string{"as", "ld"} {
		im.want(byDriver, prefix+"/bin/"+name)
	}
	for _, name := range append(companionsOf(proper), companionsOf("ld")...) {
		im.wantLibrary(byDriver, libraryDirs, name)
	}
	for _, lib := range []string{"/libexec/gcc", "/lib/gcc"} {
		machines, ok := im.find(prefix + lib)
		if !ok {
			continue
		}
		for _, machine := range machines.names(maxVersions) {
			versions, ok := im.find(path.Join(prefix, lib, machine))
			if !ok {
				continue
			}
			for _, version := range versions.names(maxVersions) {
				dir := path.Join(prefix, lib, machine, version)
				for _, name := range []string{proper, "collect2", "liblto_plugin.so", "crtbeginS.o", "crtendS.o", "libgcc.a", "libgcc_s.so"} {
					im.want(byDriver, dir+"/"+name)
				}
				if plus {
					im.want(byDriver, dir+"/libstdc++.so")
				}
			}
			for _, name := range []string{"Scrt1.o", "crti.o", "crtn.o", "libc.so", "libm.so"} {
				im.want(byDriver, path.Join("/usr/lib", machine, name), path.Join(prefix, "lib", name))
			}
		}
	}
}

// linkerScript begins a library that is a text, which names others.
const linkerScript = "/* GNU ld script"

// followScript wishes for what a linker's script names.
func followScript(im image, data []byte) {
	words := bytes.Fields(data[:min(len(data), 4<<10)])
	for _, w := range words[:min(len(words), 256)] {
		if len(w) < 256 && bytes.HasPrefix(w, []byte("/")) && !bytes.HasPrefix(w, []byte("/*")) {
			im.want(byDriver, string(w))
		}
	}
}

// wholeProgram is the largest program, compressed, that is fetched whole when it
// is run. Of a library there may be much that a program does not use.
const wholeProgram = 16 << 20

// wishProgram wishes for all of a program that does not fit into a window.
func (l *Layer) wishProgram(inode uint32) {
	var node estargz.Inode
	first, last, ok := l.windows.parts(inode)
	if !ok || l.toc.Inode(inode, &node) != nil {
		return
	}
	if size, err := l.sizeOf(first, last); err == nil && size <= wholeProgram {
		l.wishParts(inode, []span{{0, node.Size}})
	}
}

// sizeOf is the size of some members that follow one another.
func (l *Layer) sizeOf(first, last uint32) (int64, error) {
	lo, err := l.toc.Member(first)
	if err != nil {
		return 0, err
	}
	hi, err := l.toc.Member(last)
	return hi.Offset + hi.Size - lo.Offset, err
}

// wishParts wishes for ranges of a program that does not fit into a window.
func (l *Layer) wishParts(inode uint32, ranges []span) {
	first, last, ok := l.windows.parts(inode)
	if !ok {
		return
	}
	if size, err := l.sizeOf(first, last); err != nil || size <= l.pool.opts.Window {
		return
	}
	for _, v := range l.partsIn(inode, ranges) {
		if l.wishes.addPart(v) {
			l.startWishes()
		}
	}
}

// partsIn cuts ranges of a file into wishes of a window at most.
func (l *Layer) partsIn(inode uint32, ranges []span) (out []wish) {
	c, n, err := l.toc.FileChunks(inode)
	if err != nil {
		return nil
	}
	for ; n > 0; c, n = c+1, n-1 {
		var chunk estargz.Chunk
		if l.toc.Chunk(c, &chunk) != nil {
			return out
		}
		in := func(s span) bool { return s.lo < chunk.FileOffset+chunk.Size && chunk.FileOffset < s.hi }
		if chunk.Zeros || !slices.ContainsFunc(ranges, in) {
			continue
		}
		if i := len(out) - 1; i >= 0 && out[i].last+1 == chunk.Member {
			if size, err := l.sizeOf(out[i].first, chunk.Member); err == nil && size <= l.pool.opts.Window {
				out[i].last = chunk.Member
				continue
			}
		}
		out = append(out, wish{inode, chunk.Member, chunk.Member})
	}
	return out
}

func joinAll(dirs []string, name string) []string {
	out := make([]string, len(dirs))
	for i, d := range dirs {
		out[i] = d + "/" + name
	}
	return out
}

// source returns the module that a compiled one was made of, and notes where
// modules are.
func (py *python) source(p string) (source string, ok bool) {
	dir, name := path.Split(p)
	dir, ok = strings.CutSuffix(dir, "/__pycache__/")
	module, tag, _ := strings.Cut(strings.TrimSuffix(name, ".pyc"), ".")
	if !ok || module == "" || tag == "" || path.Ext(p) != ".pyc" {
		return "", false
	}
	var roots []string
	for d := dir; len(d) > 1; d = path.Dir(d) {
		base := path.Base(d)
		if base == "site-packages" || base == "dist-packages" || strings.HasPrefix(base, "python3.") {
			roots = []string{d}
			break
		}
	}
	py.add(tag, roots)
	return dir + "/" + module + ".py", true
}

// followCompiled wishes for the source beside a compiled module: the interpreter
// looks at both when it does not trust the time in the compiled one.
func (l *Layer) followCompiled(inode uint32) {
	p, ok := l.pathOf(inode)
	if !ok {
		return
	}
	if source, ok := l.python.source(p); ok {
		im, release := l.image()
		defer release()
		im.want(bySource, source)
	}
}

// followModule wishes for what a module of Python imports.
func (l *Layer) followModule(im image, dir string, data []byte) {
	l.python.Lock()
	roots, tag := slices.Clone(l.python.roots), l.python.tag
	l.python.Unlock()
	for _, m := range imported(data) {
		bases := roots
		if m.up > 0 {
			base := dir
			for range min(m.up-1, habitDepth) {
				base = path.Dir(base)
			}
			bases = []string{base}
		}
		for _, base := range bases {
			if im.wantModule(base+"/"+m.path, tag) {
				break
			}
		}
	}
}

// wantModule wishes for a module or package of Python.
func (im image) wantModule(p, tag string) bool {
	for _, source := range []string{p + ".py", p + "/__init__.py"} {
		at, ok := im.file(source)
		if !ok {
			continue
		}
		dir, name := path.Split(source)
		if im.want(byImport, dir+"__pycache__/"+strings.TrimSuffix(name, ".py")+"."+tag+".pyc") {
			at.layer.wish(bySource, at.inode)
		} else {
			at.layer.wish(byImport, at.inode)
		}
		return true
	}
	for _, t := range triplets {
		for _, d := range []string{p, path.Dir(p) + "/lib-dynload/" + path.Base(p)} {
			if im.want(byImport, d+"."+tag+"-"+t.name+".so") {
				return true
			}
		}
	}
	return im.want(byImport, p+".abi3.so", p+".so")
}

// followPackages wishes for the packages that a source of Go imports, and for the
// rest of its own. Sources for tests and for other systems are read, but not what
// they import.
func (l *Layer) followPackages(im image, p string, data []byte) {
	dir, name := path.Split(p)
	at := strings.LastIndex(dir, "/src/")
	if at < 0 || !l.wishes.may(byPackage, 0) {
		return
	}
	src := dir[:at+len("/src/")]
	if l.wishes.named(dir) {
		im.wantPackage(dir)
	}
	if otherSystem(name) {
		return
	}
	for _, name := range packages(data) {
		if !l.wishes.named(src + name) {
			continue
		}
		if !im.wantPackage(src + name) {
			if name = "vendor/" + name; !im.wantPackage(src + name) {
				continue
			}
		}
		l.wishes.imported(name)
	}
}

// otherSystem says whether a source of Go is for tests or not for Linux.
func otherSystem(name string) bool {
	for part := range strings.SplitSeq(strings.TrimSuffix(name, ".go"), "_") {
		switch part {
		case "test", "windows", "darwin", "freebsd", "netbsd", "openbsd", "dragonfly", "solaris", "illumos", "aix", "plan9", "js", "wasip1", "android", "ios":
			return true
		}
	}
	return false
}

// followArchive wishes for the compiled forms of the packages that were imported,
// when one is read: the linker, at last, reads all of them.
func (l *Layer) followArchive(im image, dir string) {
	root, ok := archiveRoot(dir)
	if !ok {
		return
	}
	for _, name := range l.wishes.packages() {
		im.want(byPackage, root+"/"+name+".a")
	}
}

// archiveRoot returns the directory ".../pkg/linux_amd64" that dir is, or is in.
func archiveRoot(dir string) (root string, ok bool) {
	head, tail, ok := strings.Cut(dir+"/", "/pkg/linux_")
	machine, _, _ := strings.Cut(tail, "/")
	return head + "/pkg/linux_" + machine, ok
}

// maxPackage bounds the files of a package.
const maxPackage = 1 << 10

// wantPackage wishes for a package of Go: its files are all read.
func (im image) wantPackage(dir string) bool {
	at, ok := im.find(dir)
	if !ok {
		return false
	}
	files := at.files(maxPackage, func(name string) bool {
		ext := path.Ext(name)
		return ext == ".go" || ext == ".s" || ext == ".h"
	})
	for _, f := range files {
		f.layer.wish(byPackage, f.inode)
	}
	return len(files) > 0
}

// followHeader wishes for the headers that a header includes.
func (l *Layer) followHeader(im image, p string, data []byte) {
	dir := path.Dir(p)
	names := slices.DeleteFunc(included(data), func(name string) bool {
		return path.Join(dir, name) != p && !l.wishes.named(dir+"//"+name) // #include_next of itself is another file
	})
	if len(names) == 0 {
		return
	}
	dirs := includeDirs(im, p)
	for _, name := range names {
		for _, d := range dirs {
			if at, ok := im.file(d + "/" + name); ok && d+"/"+name != p {
				at.layer.wish(byInclude, at.inode)
				break
			}
		}
	}
}

// includeDirs are the directories where a compiler looks for what header p
// includes: those above it, and what else is usual.
func includeDirs(im image, p string) (dirs []string) {
	version := ""
	for d := path.Dir(p); len(d) > 1; d = path.Dir(d) {
		dirs = append(dirs, d)
		if path.Base(path.Dir(d)) == "c++" {
			version = path.Base(d)
		}
		if path.Base(d) == "include" {
			break
		}
	}
	if len(dirs) > maxRoots {
		return dirs[:maxRoots]
	}
	for _, t := range triplets {
		if version != "" {
			dirs = append(dirs, "/usr/include/"+t.name+"/c++/"+version)
		}
		if at, ok := im.find("/usr/lib/gcc/" + t.name); ok {
			for _, v := range at.names(maxRoots) {
				dirs = append(dirs, "/usr/lib/gcc/"+t.name+"/"+v+"/include")
			}
		}
		dirs = append(dirs, "/usr/include/"+t.name)
	}
	return append(dirs, "/usr/include")
}

// firstChunk returns the chunk of a flight that is the beginning of its file; nil
// when it has none, or nothing is to come of it.
func (l *Layer) firstChunk(f *flight, chunks map[uint32]*buffer) *buffer {
	b := chunks[f.want]
	if b == nil || l.known.Load() > 0 || l.blob.Local() || l.pool.opts.Window <= 0 {
		return nil
	}
	inode, err := l.toc.MemberFile(f.member)
	if err != nil || l.isScanned(inode) { // who reads everything needs no clues
		return nil
	}
	if c, _, err := l.toc.FileChunks(inode); err != nil || c != f.want {
		return nil
	}
	return b
}

// followFirst looks into the beginning of a file.
func (l *Layer) followFirst(f *flight, data []byte) {
	if inode, err := l.toc.MemberFile(f.member); err == nil {
		l.follow(inode, data)
	}
}

// followMember looks at the name of a file whose contents are on their way.
func (l *Layer) followMember(m uint32) {
	if inode, err := l.toc.MemberFile(m); err == nil && l.pool.opts.Window > 0 {
		l.followCompiled(inode)
	}
}

// used notes that a member was read.
func (l *Layer) used(m uint32) {
	l.windows.use(m)
	if inode, err := l.toc.MemberFile(m); err == nil {
		l.wishes.wasRead(inode)
	}
}
