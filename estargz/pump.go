package estargz

import (
	"errors"
	"hash"
	"io"
	"sync"
)

// pump reads ahead in a goroutine of its own, and hashes what it reads: a TOC is decompressed
// while it is parsed. It is read by one goroutine, which stops it.
type pump struct {
	full, empty chan []byte
	quit        chan struct{}
	wg          sync.WaitGroup

	block []byte // from full; cur is the rest of it
	cur   []byte
	err   error // of the reader, valid when full is closed
}

const (
	pumpBlock  = 64 << 10
	pumpBlocks = 4
)

var errTruncated = errors.New("the compressed bytes end too early")

func newPump(r io.Reader, h hash.Hash) *pump {
	p := &pump{full: make(chan []byte, pumpBlocks), empty: make(chan []byte, pumpBlocks), quit: make(chan struct{})}
	for range pumpBlocks {
		p.empty <- make([]byte, pumpBlock)
	}
	p.wg.Go(func() { p.run(r, h) })
	return p
}

func (p *pump) run(r io.Reader, h hash.Hash) {
	defer close(p.full)
	for {
		var b []byte
		select {
		case b = <-p.empty:
		case <-p.quit:
			return
		}
		n, err := 0, error(nil)
		for n < pumpBlock && err == nil {
			var m int
			m, err = r.Read(b[n:pumpBlock])
			n += m
		}
		if err == io.ErrUnexpectedEOF { // which parsers may take for their own
			err = errTruncated
		}
		h.Write(b[:n])
		p.full <- b[:n] // there are no more blocks than it takes
		if err != nil {
			p.err = err
			return
		}
	}
}

// Read implements io.Reader.
func (p *pump) Read(dst []byte) (int, error) {
	for len(p.cur) == 0 {
		if p.block != nil {
			p.empty <- p.block
		}
		b, ok := <-p.full
		if !ok {
			p.block = nil
			return 0, p.err
		}
		p.block, p.cur = b, b
	}
	n := copy(dst, p.cur)
	p.cur = p.cur[n:]
	return n, nil
}

// stop ends the goroutine and waits for it. Nothing is read afterwards.
func (p *pump) stop() {
	close(p.quit)
	p.wg.Wait()
}
