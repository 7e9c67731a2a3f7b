package fuse

import (
	"bytes"
	"encoding/json"
	"sync"
	"time"
	"unicode/utf8"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Every layer has a hidden directory with one file that shows its Status, for
// root only, at the path where stargz-snapshotter has it. Neither is listed.
const (
	stateDirName  = ".stargz-snapshotter"
	stateFileMode = 0o400
	stateDirMode  = 0o500

	// stateSize is the size of the file whatever it says, padded with spaces: a
	// reader's size and its bytes come from different messages, and the status
	// may change in between.
	stateSize = 1024
)

// stateFile is the last rendering of a layer's status. READ serves the rendering
// that the last GETATTR made, so all bytes of a pass are of one moment.
type stateFile struct {
	mu struct {
		sync.Mutex
		body  []byte // stateSize bytes, never written to again
		mtime time.Time
	}
}

func stateFileName(s Status) string { return s.Digest.String() + ".json" }

// refresh renders s. The modification time moves, strictly upwards, whenever the
// bytes change: that is how the kernel learns that its pages are old.
func (f *stateFile) refresh(s Status) (body []byte, mtime time.Time) {
	next := renderStatus(s)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !bytes.Equal(next, f.mu.body) {
		now := time.Now()
		if !now.After(f.mu.mtime) {
			now = f.mu.mtime.Add(1)
		}
		f.mu.body, f.mu.mtime = next, now
	}
	return f.mu.body, f.mu.mtime
}

// read is the last rendering, made now if there is none.
func (f *stateFile) read(s func() Status) []byte {
	f.mu.Lock()
	body := f.mu.body
	f.mu.Unlock()
	if body == nil {
		body, _ = f.refresh(s())
	}
	return body
}

// renderStatus makes exactly stateSize bytes of JSON; the error is cut to fit.
func renderStatus(s Status) []byte {
	var b []byte
	for {
		var err error
		if b, err = json.Marshal(s); err != nil {
			// A percentage that is not a number; nothing else can fail.
			s.FetchedPercent = 0
			continue
		}
		over := len(b) + 1 - stateSize
		if over <= 0 {
			break
		}
		if s.Error == "" {
			s.Digest = "" // absurdly long
			continue
		}
		s.Error = cut(s.Error, len(s.Error)-max(over, 16))
	}
	out := bytes.Repeat([]byte{' '}, stateSize)
	copy(out, b)
	out[stateSize-1] = '\n'
	return out
}

// cut shortens s to at most n bytes, between characters.
func cut(s string, n int) string {
	n = max(n, 0)
	for n > 0 && n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:min(n, len(s))]
}

func (d *Dir) stateDirAttr(out *gofuse.Attr) {
	*out = gofuse.Attr{
		Ino: d.ownInos + 1, Mode: unix.S_IFDIR | stateDirMode, Nlink: 2,
		Size: blockSize, Blocks: blockSize / 512, Blksize: blockSize,
	}
}

// stateFileAttr renders the status anew: each GETATTR is a look at the layer.
func (d *Dir) stateFileAttr(c Content, out *gofuse.Attr) {
	_, mtime := d.state.refresh(c.Status())
	*out = gofuse.Attr{
		Ino: d.ownInos + 2, Mode: unix.S_IFREG | stateFileMode, Nlink: 1,
		Size: stateSize, Blocks: blockSize / 512, Blksize: blockSize,
	}
	out.SetTimes(&mtime, &mtime, &mtime)
}
