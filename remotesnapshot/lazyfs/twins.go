package lazyfs

import "github.com/lazykit/lazykit/remotesnapshot"

// Fast returns dirs with each directory that answers exactly for xattrs replaced
// by the one that shows the same copy of the same layer with fast answers (see
// remotesnapshot.Xattrs), made at its first use. Other directories are returned
// as they are. Those who mount exact directories hold the layers.
func (fs *FS) Fast(dirs []string) ([]string, error) {
	wanted := make(map[string][]int, len(dirs))
	for i, dir := range dirs {
		wanted[dir] = append(wanted[dir], i)
	}
	out := append([]string(nil), dirs...)
	for _, e := range fs.open() {
		for n, exact := range e.exactDirs() {
			places := wanted[exact]
			if len(places) == 0 {
				continue
			}
			fast, err := fs.dir(e, n, remotesnapshot.FastXattrs)
			if err != nil {
				return nil, err
			}
			for _, i := range places {
				out[i] = fast
			}
		}
	}
	return out, nil
}

// open lists the entries.
func (fs *FS) open() []*entry {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	list := make([]*entry, 0, len(fs.mu.entries))
	for _, e := range fs.mu.entries {
		list = append(list, e)
	}
	return list
}

// exactDirs are the paths of the exact directories, by copy.
func (e *entry) exactDirs() []string {
	e.dirs.Lock()
	defer e.dirs.Unlock()
	paths := make([]string, len(e.dirs.exact))
	for n, d := range e.dirs.exact {
		paths[n] = d.Path()
	}
	return paths
}
