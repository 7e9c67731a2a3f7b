package estargztest

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ModelOfTar is the tree that a layer's tar means: what is left after each entry
// was extracted over the ones before, with overlay's whiteouts. It is written
// for being read, not for speed, and shares nothing with package estargz.
func ModelOfTar(r io.Reader) (Tree, error) {
	m := &model{tree: Tree{"": {Mode: unix.S_IFDIR | 0o755, Mtime: time.Unix(0, 0), Implicit: true}}, hidden: map[string]bool{}}
	tr := tar.NewReader(r)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := m.apply(hdr, tr); err != nil {
			return nil, fmt.Errorf("model: %.100q: %w", hdr.Name, err)
		}
	}
	for _, hdr := range m.later {
		target, ok := m.tree[m.resolve(hdr.Linkname)]
		if !ok {
			return nil, fmt.Errorf("model: %.100q: no %.100q to link to", hdr.Name, hdr.Linkname)
		}
		if name := m.resolve(hdr.Name); m.tree[name] == nil {
			m.tree[name] = target
		}
	}
	m.countLinks()
	return m.tree, nil
}

type model struct {
	tree   Tree
	hidden map[string]bool // names that a whiteout speaks of
	later  []*tar.Header   // hard links to what comes later
}

// resolve follows the symlinks of all components but the last.
func (m *model) resolve(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for range 300 {
		parts := strings.Split(name, "/")
		again := false
		for i := 1; i < len(parts); i++ {
			n := m.tree[strings.Join(parts[:i], "/")]
			if n == nil || n.Mode&unix.S_IFMT != unix.S_IFLNK {
				continue
			}
			base := "/" + strings.Join(parts[:i-1], "/")
			if strings.HasPrefix(n.Target, "/") {
				base = "/"
			}
			name = strings.TrimPrefix(path.Join(base, n.Target, strings.Join(parts[i:], "/")), "/")
			again = true
			break
		}
		if !again {
			return name
		}
	}
	return name
}

func (m *model) apply(hdr *tar.Header, data io.Reader) error {
	name := m.resolve(hdr.Name)
	dir, base := parentOf(name), path.Base(name)
	switch {
	case name == "":
		m.attrs(m.tree[""], hdr)
		m.tree[""].Implicit = false
		return nil
	case name == ".prefetch.landmark" || name == ".no.prefetch.landmark" || name == "stargz.index.json":
		return nil
	case strings.Contains("/"+dir+"/", "/.wh..wh."):
		return nil
	case base == ".wh..wh..opq":
		m.mkdirs(dir)
		m.tree[dir].Opaque = true
		return nil
	case strings.HasPrefix(base, ".wh..wh."):
		return nil
	case strings.HasPrefix(base, ".wh."):
		m.mkdirs(dir)
		m.whiteout(path.Join(dir, base[len(".wh."):]), hdr)
		return nil
	}
	m.mkdirs(dir)
	return m.real(name, hdr, data)
}

func (m *model) whiteout(name string, hdr *tar.Header) {
	m.hidden[name] = true
	if old := m.tree[name]; old != nil && !old.IsWhiteout() {
		old.Opaque = old.Opaque || old.IsDir()
		return
	}
	m.tree[name] = &Node{
		Mode: unix.S_IFCHR, UID: uint32(hdr.Uid), GID: uint32(hdr.Gid), Mtime: timeOf(hdr),
	}
}

func (m *model) real(name string, hdr *tar.Header, data io.Reader) error {
	old := m.tree[name]
	if hdr.Typeflag == tar.TypeLink {
		target := m.tree[m.resolve(hdr.Linkname)]
		if target == nil {
			m.later = append(m.later, hdr)
			return nil
		}
		m.remove(name)
		m.tree[name] = target
		m.attrs(target, hdr)
		return nil
	}
	n := &Node{}
	switch hdr.Typeflag {
	case tar.TypeDir:
		if old != nil && old.IsDir() {
			old.Implicit = false
			m.attrs(old, hdr)
			return nil
		}
		n.Mode, n.Opaque = unix.S_IFDIR, m.hidden[name]
	case tar.TypeReg:
		n.Mode, n.Size = unix.S_IFREG, hdr.Size
		h := sha256.New()
		if _, err := io.Copy(h, data); err != nil {
			return err
		}
		n.Sum = [sha256.Size]byte(h.Sum(nil))
	case tar.TypeSymlink:
		n.Mode, n.Target, n.Size = unix.S_IFLNK, hdr.Linkname, int64(len(hdr.Linkname))
	case tar.TypeChar, tar.TypeBlock:
		n.Mode = unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			n.Mode = unix.S_IFBLK
		}
		major, minor := uint32(hdr.Devmajor), uint32(hdr.Devminor)
		n.Rdev = minor&0xff | major<<8 | minor>>8<<20
	case tar.TypeFifo:
		n.Mode = unix.S_IFIFO
	default:
		return fmt.Errorf("type %q", hdr.Typeflag)
	}
	m.remove(name)
	m.tree[name] = n
	m.attrs(n, hdr)
	return nil
}

func (m *model) remove(name string) {
	if m.tree[name] == nil {
		return
	}
	delete(m.tree, name)
	maps.DeleteFunc(m.tree, func(p string, _ *Node) bool { return strings.HasPrefix(p, name+"/") })
}

func (m *model) mkdirs(dir string) {
	if n := m.tree[dir]; n != nil && !n.IsWhiteout() {
		return
	}
	m.mkdirs(parentOf(dir))
	m.tree[dir] = &Node{Mode: unix.S_IFDIR | 0o755, Mtime: time.Unix(0, 0), Opaque: m.hidden[dir], Implicit: true}
}

func (m *model) attrs(n *Node, hdr *tar.Header) {
	n.Mode = n.Mode&unix.S_IFMT | uint32(hdr.Mode)&0o7777
	if n.Mode&unix.S_IFMT == unix.S_IFLNK {
		n.Mode = unix.S_IFLNK | 0o777
	}
	n.UID, n.GID, n.Mtime = uint32(hdr.Uid), uint32(hdr.Gid), timeOf(hdr)
	for k, v := range hdr.PAXRecords {
		key, ok := strings.CutPrefix(k, paxXattr)
		if !ok || strings.HasPrefix(key, "trusted.") || strings.HasPrefix(key, "user.overlay.") {
			continue
		}
		if strings.HasPrefix(key, "user.") && !n.IsDir() && !n.IsFile() {
			continue
		}
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[key] = v
	}
}

func timeOf(hdr *tar.Header) time.Time {
	if hdr.ModTime.Unix() < 0 {
		return time.Unix(0, 0)
	}
	return hdr.ModTime
}

func (m *model) countLinks() {
	for name, n := range m.tree {
		if n.IsDir() {
			n.Nlink += 2
			if name != "" {
				m.tree[parentOf(name)].Nlink++
			}
		} else {
			n.Nlink++
		}
	}
	m.tree[""].Nlink = 2
	for name, n := range m.tree {
		if name != "" && n.IsDir() && parentOf(name) == "" {
			m.tree[""].Nlink++
		}
	}
}
