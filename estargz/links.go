package estargz

import (
	"errors"
	"fmt"
)

// link is a hard link to be made when its target is known.
type link struct {
	dir          uint32
	base         strRef
	before       uint32 // the inode that has the name until then, + 1; 0 for none
	name, target strRef // as in the TOC
}

// addLink makes a hard link, or keeps it for later if its target is not there.
func (b *builder) addLink(dir uint32, name []byte, e *entry) error {
	path, err := splitPath(nil, e.linkName)
	if err != nil {
		return fmt.Errorf("hard link to %.256q: %w", e.linkName, err)
	}
	i, err := b.lookup(path)
	if errors.Is(err, ErrNotExist) {
		return b.postpone(dir, name, e)
	}
	if err == nil {
		err = b.link(dir, name, i)
	}
	if err == nil {
		err = b.setAttrs(i, e)
	}
	if err != nil {
		return fmt.Errorf("hard link to %.256q: %w", e.linkName, err)
	}
	return nil
}

func (b *builder) link(dir uint32, name []byte, inode uint32) error {
	if b.isDir(inode) {
		return errors.New("target is a directory")
	}
	if b.inodes.at(inode).flags&inodeWhiteout != 0 {
		return errors.New("target is a whiteout")
	}
	_, err := b.put(dir, name, inode)
	return err
}

func (b *builder) postpone(dir uint32, base []byte, e *entry) error {
	l := link{dir: dir}
	if n, ok := b.find(dir, base); ok {
		l.before = n.inode + 1
	}
	for ref, s := range map[*strRef][]byte{&l.base: base, &l.name: e.name, &l.target: e.linkName} {
		var err error
		if *ref, err = b.strs.add(s); err != nil {
			return err
		}
	}
	b.links.add(l)
	return nil
}

// linkRounds bounds the length of chains of links that come in the wrong order.
const linkRounds = 8

// makeLinks makes the hard links whose targets came after them. A name that
// something else has taken since keeps what it has: that entry came later.
// The attributes of such a link are its target's.
func (b *builder) makeLinks() error {
	pending := make([]uint32, 0, b.links.n)
	for i := range b.links.n {
		pending = append(pending, i)
	}
	for range linkRounds {
		missing := pending[:0]
		for _, i := range pending {
			l := b.links.at(i)
			made, err := b.makeLink(l)
			if err != nil {
				return b.linkError(l, err)
			}
			if !made {
				missing = append(missing, i)
			}
		}
		if pending = missing; len(pending) == 0 {
			return nil
		}
	}
	return b.linkError(b.links.at(pending[0]), ErrNotExist)
}

func (b *builder) linkError(l *link, err error) error {
	return entryError(b.strs.get(l.name), fmt.Errorf("hard link to %.256q: %w", b.strs.get(l.target), err))
}

// makeLink reports false if the target is not there (yet).
func (b *builder) makeLink(l *link) (bool, error) {
	path, err := splitPath(nil, b.strs.get(l.target))
	if err != nil {
		return false, err
	}
	i, err := b.lookup(path)
	if errors.Is(err, ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	base := b.strs.get(l.base)
	if n, ok := b.find(l.dir, base); ok && n.inode+1 != l.before {
		return true, nil
	}
	return true, b.link(l.dir, base, i)
}
