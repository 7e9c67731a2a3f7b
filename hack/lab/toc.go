package lab

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lazykit/lazykit/estargz"
)

// TOC says where the table of contents of a layer lies. False for one that has none.
func (i *Image) TOC(layer int) (loc estargz.Location, ok bool, err error) {
	l := i.Layers[layer]
	file, err := os.Open(i.Blob(l.Digest))
	if err != nil {
		return loc, false, fmt.Errorf("find the table of contents of layer %s: %w", l.Digest, err)
	}
	defer file.Close()
	tail := make([]byte, min(l.Size, estargz.MinTail))
	if _, err := file.ReadAt(tail, l.Size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return loc, false, fmt.Errorf("find the table of contents of layer %s: %w", l.Digest, err)
	}
	loc, err = estargz.ParseFooter(tail, l.Size)
	if errors.Is(err, estargz.ErrNotLazy) {
		return loc, false, nil
	}
	if err != nil {
		return loc, false, fmt.Errorf("find the table of contents of layer %s: %w", l.Digest, err)
	}
	return loc, true, nil
}

// TOCSize is the sum of the compressed sizes of the layers' tables of contents, each
// with its footer.
func (i *Image) TOCSize() (int64, error) {
	var sum int64
	for n, l := range i.Layers {
		loc, ok, err := i.TOC(n)
		if err != nil {
			return 0, err
		}
		if ok {
			sum += l.Size - loc.Offset
		}
	}
	return sum, nil
}
