package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
)

// A daemon that serves FUSE answers a READ with a page or more, in one write to
// /dev/fuse, which the kernel counts among what the process has written
// (/proc/PID/io: wchar). That tells whether files were read, whatever the daemon
// counts itself: a silent step makes it write nearly nothing else.
const pageReply = 4096

// look is what a process had written at a moment.
type look struct {
	at    time.Time
	wchar int64
}

// written is how much was written in an interval, from the last look before it to
// the first one after it.
func written(looks []look, p interval) int64 {
	if len(looks) == 0 {
		return 0
	}
	before, after := looks[0], looks[len(looks)-1]
	for _, l := range looks {
		if !l.at.After(p.from) {
			before = l
		}
		if !l.at.Before(p.to) {
			after = l
			break
		}
	}
	return after.wchar - before.wchar
}

// replyWatch looks at a process until end.
type replyWatch struct {
	stop    chan struct{}
	running sync.WaitGroup
	looks   []look
	err     error
}

// watchReplies begins to look at what a daemon writes.
func watchReplies(d *lab.Daemon) *replyWatch {
	w := &replyWatch{stop: make(chan struct{})}
	w.running.Add(1)
	go func() {
		defer w.running.Done()
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for w.err == nil {
			var l look
			if l, w.err = lookAt(d.Pid); w.err == nil {
				w.looks = append(w.looks, l)
			}
			select {
			case <-tick.C:
			case <-w.stop:
				return
			}
		}
	}()
	return w
}

// end returns what was seen. It is called once.
func (w *replyWatch) end() ([]look, error) {
	close(w.stop)
	w.running.Wait()
	return w.looks, w.err
}

func lookAt(pid int) (look, error) {
	now := time.Now()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return look{}, fmt.Errorf("look at what the daemon writes: %w", err)
	}
	for l := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(l, []byte("wchar: ")); ok {
			n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
			if err != nil {
				return look{}, fmt.Errorf("look at what the daemon writes: %w", err)
			}
			return look{now, n}, nil
		}
	}
	return look{}, fmt.Errorf("look at what the daemon writes: the kernel does not count it")
}
