package fuse_test

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

// FuzzLifetimes sends requests about layers from several goroutines while layers come
// and go and the server ends, as a script of bytes says. Nothing panics or hangs, no
// hold stays, and what is gone answers so.
//
// Each step of the script has four bytes: what is done, with which layer, about which
// inode, and how much.
func FuzzLifetimes(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 0, 1, 200, 1, 0, 0, 0, 2, 0, 1, 200})                         // add, read, remove, read
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 90, 4, 0, 0, 255, 1, 1, 0, 0, 15, 0, 0, 0}) // two, list, remove, end
	f.Add([]byte{15, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1})                                        // all after the end
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 3, 9, 6, 0, 2, 9, 7, 0, 1, 0})     // removed twice
	content := ft.Layer(f, ft.Tar(f, torture(true)...))
	n := content.TOC().Len()
	f.Fuzz(func(t *testing.T, script []byte) {
		script = script[:min(len(script), 4*64)]
		s, plain, xattr := fuse.Unmounted()
		var ended atomic.Bool
		var layers struct {
			sync.Mutex
			all     []*fuse.Dir
			removed map[*fuse.Dir]bool
		}
		layers.removed = map[*fuse.Dir]bool{}
		pick := func(i byte) (d *fuse.Dir, removed bool) {
			layers.Lock()
			defer layers.Unlock()
			if len(layers.all) == 0 {
				return nil, false
			}
			d = layers.all[int(i)%len(layers.all)]
			return d, layers.removed[d]
		}
		var running sync.WaitGroup
		for ; len(script) >= 4; script = script[4:] {
			what, which, inode, size := script[0], script[1], uint32(script[2])%(n+2), int(script[3])
			switch what % 16 {
			case 0:
				d, err := s.AddExact(content)
				if err == nil {
					layers.Lock()
					layers.all = append(layers.all, d)
					layers.Unlock()
				} else if !ended.Load() {
					t.Error(err)
				}
			case 1:
				if d, _ := pick(which); d != nil {
					layers.Lock()
					layers.removed[d] = true
					layers.Unlock()
					running.Go(d.Remove)
				}
			case 15:
				ended.Store(true)
				s.End()
			default:
				d, removed := pick(which)
				if d == nil {
					break
				}
				running.Go(func() {
					fs := xattr
					if d.Plain() {
						fs = plain
					}
					var off [8]byte
					off[0] = which
					buf := make([]byte, 16*size)
					_ = ask(fs, what, d.NodeID(inode), binary.LittleEndian.Uint64(off[:]), buf, "usr")
					if !removed {
						return
					}
					// Its removal may still be under way; when it has ended:
					d.Remove()
					if st := ask(fs, 1, d.NodeID(inode), 0, buf, ""); st != gofuse.Status(unix.ESTALE) {
						t.Errorf("a removed layer answers %v", st)
					}
				})
			}
		}
		done := make(chan struct{})
		go func() {
			running.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("requests hang")
		}
		s.End()
		if content.Holders() != 0 {
			t.Fatalf("%d holds stay", content.Holders())
		}
	})
}
