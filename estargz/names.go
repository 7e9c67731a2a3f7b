package estargz

import (
	"bytes"
	"errors"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"

	prefetchLandmark   = ".prefetch.landmark"
	noPrefetchLandmark = ".no.prefetch.landmark"
)

// nameKind is what the name of an entry makes of it.
type nameKind uint8

const (
	nameReal     nameKind = iota
	nameRoot              // the layer's root directory
	nameWhiteout          // the base is the name that is hidden
	nameOpaque            // the parent hides what is below it
	namePrefetch          // landmark
	nameDropped           // no part of the tree
)

// splitPath appends the components of an entry's name to dst: "./" and slashes
// at either end and in a row mean nothing. A ".." takes back the component
// before it; one that would leave the root is an error, as are names that no
// kernel takes.
func splitPath(dst [][]byte, name []byte) ([][]byte, error) {
	if len(name) > maxPath {
		return nil, limitf("path of %d bytes", len(name))
	}
	if bytes.IndexByte(name, 0) >= 0 {
		return nil, errors.New("name with a NUL byte")
	}
	for len(name) > 0 {
		c, rest, _ := bytes.Cut(name, []byte{'/'})
		name = rest
		switch {
		case len(c) == 0 || string(c) == ".":
		case string(c) == "..":
			if len(dst) == 0 {
				return nil, errors.New("name leaves the root")
			}
			dst = dst[:len(dst)-1]
		case len(c) > maxName:
			return nil, limitf("name of %d bytes", len(c))
		default:
			dst = append(dst, c)
		}
	}
	return dst, nil
}

// classify finds what a path means, and the base name that it speaks of.
func classify(path [][]byte) (nameKind, []byte, error) {
	if len(path) == 0 {
		return nameRoot, nil, nil
	}
	parents, base := path[:len(path)-1], path[len(path)-1]
	for _, c := range parents {
		if bytes.HasPrefix(c, []byte(whiteoutMeta)) {
			return nameDropped, nil, nil
		}
		if bytes.HasPrefix(c, []byte(whiteoutPrefix)) {
			return nameDropped, nil, errors.New("whiteout as a parent")
		}
	}
	if len(parents) == 0 {
		switch string(base) {
		case prefetchLandmark:
			return namePrefetch, nil, nil
		case noPrefetchLandmark, tocName:
			return nameDropped, nil, nil
		}
	}
	hidden, whiteout := bytes.CutPrefix(base, []byte(whiteoutPrefix))
	switch {
	case !whiteout:
		return nameReal, base, nil
	case string(base) == whiteoutOpaque:
		return nameOpaque, nil, nil
	case bytes.HasPrefix(base, []byte(whiteoutMeta)):
		return nameDropped, nil, nil
	}
	switch string(hidden) {
	case "", ".", "..":
		return nameDropped, nil, errors.New("whiteout of nothing")
	}
	return nameWhiteout, hidden, nil
}
