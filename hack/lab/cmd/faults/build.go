package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/fault"
)

// bench is what all cells share.
type bench struct {
	o        options
	registry *lab.Registry
	image    *lab.Image
	foreign  *lab.Image    // of builds beside those that count
	front    fault.Options // of a proxy, without what a cell asks for
	want     map[work]string
	dir      string
}

func newBench(ctx context.Context, o options) (_ *bench, err error) {
	b := &bench{o: o, want: map[work]string{}}
	if b.image, err = lab.ReadsImage(ctx, 0); err != nil {
		return nil, err
	}
	// BuildKit takes what two builds do with one image for the same, whatever
	// registries it is from.
	if b.foreign, err = lab.ReadsImage(ctx, 1); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "lab-faults-"); err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	if b.registry, err = lab.StartRegistry(ctx, lab.RegistryOptions{}); err != nil {
		os.RemoveAll(b.dir)
		return nil, err
	}
	if err := b.prepare(ctx); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// prepare pushes the image and builds it without faults, for comparison.
func (b *bench) prepare(ctx context.Context) error {
	for _, img := range []*lab.Image{b.image, b.foreign} {
		if _, err := lab.Push(ctx, b.registry.Direct, img); err != nil {
			return err
		}
	}
	b.front = fault.Options{Upstream: b.registry.Direct, Tails: map[string]int64{}, Configs: []string{b.image.Config.Digest.String(), b.foreign.Config.Digest.String()}}
	for i, l := range b.image.Layers {
		toc, ok, err := b.image.TOC(i)
		if err != nil || !ok {
			return fmt.Errorf("layer %s has no table of contents: %w", l.Digest, err)
		}
		b.front.Tails[l.Digest.String()] = toc.Offset
	}
	ours, err := lab.Ours(ctx)
	if err != nil {
		return err
	}
	d, err := lab.StartDaemon(ctx, lab.DaemonOptions{Program: ours.Buildkitd, Snapshotter: "overlayfs", Registries: []string{b.registry.Direct}})
	if err != nil {
		return err
	}
	for _, w := range []work{some, all} {
		got, err := b.build(ctx, d, b.registry.Direct+"/"+b.image.Tag(), cell{work: w})
		if err != nil {
			return errors.Join(fmt.Errorf("build without faults: %w", err), d.Stop(), d.Remove())
		}
		if strings.Count(got, "\n") < 50 {
			return errors.Join(fmt.Errorf("build without faults: it read %q", got), d.Stop(), d.Remove())
		}
		b.want[w] = got
	}
	return errors.Join(d.Stop(), d.Remove())
}

func (b *bench) close() {
	b.registry.Stop()
	os.RemoveAll(b.dir)
}

// try builds a cell with each subject.
func (b *bench) try(ctx context.Context, c cell, seed uint64, subjects []subject) (out []outcome) {
	for _, s := range subjects {
		o := b.one(ctx, c, seed, s)
		if o.err != nil && b.o.verbose {
			fmt.Fprintf(os.Stderr, "# %s: %s: %v\n%s\n", s.name, c.name(), o.err, o.logs)
		}
		out = append(out, o)
	}
	return out
}

// ways are the proxies of a cell.
type ways struct {
	bad, good *fault.Proxy // good is nil when there is one way only
	ref       string       // host of the image's reference
	config    string       // of the daemon
}

func (w *ways) close() {
	w.bad.Close()
	if w.good != nil {
		w.good.Close()
	}
}

// open starts the proxies of a cell.
func (b *bench) open(c cell, seed uint64) (*ways, error) {
	front := b.front
	front.Seed, front.TokenTTL, front.RedirectTTL = seed, c.fault.front.TokenTTL, c.fault.front.RedirectTTL
	bad, err := fault.New(front)
	if err != nil {
		return nil, err
	}
	w := &ways{bad: bad, ref: bad.Addr}
	mirror := ""
	switch c.fault.at {
	case first, other:
		if w.good, err = fault.New(b.front); err != nil {
			bad.Close()
			return nil, err
		}
		w.ref, mirror = w.good.Addr, bad.Addr
	case nowhere:
		mirror = "mirror.invalid:5000"
	}
	for _, host := range []string{bad.Addr, w.ref, "mirror.invalid:5000"} {
		if strings.Contains(w.config, host) {
			continue
		}
		w.config += fmt.Sprintf("[registry.%q]\n  http = true\n", host)
		if host == w.ref && mirror != "" && c.fault.at != other {
			w.config += fmt.Sprintf("  mirrors = [%q]\n", mirror)
		}
	}
	return w, nil
}

// one builds a cell with one subject on fresh state.
func (b *bench) one(ctx context.Context, c cell, seed uint64, s subject) (o outcome) {
	w, err := b.open(c, seed)
	if err != nil {
		return outcome{err: err}
	}
	defer w.close()
	d, err := lab.StartDaemon(ctx, lab.DaemonOptions{Program: s.program, Snapshotter: "stargz", Config: w.config})
	if err != nil {
		return outcome{err: err}
	}
	if c.fault.breaks() {
		w.bad.Set(c.struck())
	}
	ctx, cancel := context.WithTimeout(ctx, b.o.limit+c.fault.extra)
	defer cancel()
	beside := func() {}
	if c.fault.at == other {
		beside = b.beside(ctx, d, w.bad)
	}
	start := time.Now()
	got, err := b.build(ctx, d, w.ref+"/"+b.image.Tag(), c)
	o.wall, o.hits = time.Since(start), w.bad.Hits()
	switch {
	case err != nil:
		o.err = err
	case got != b.want[c.work]:
		o.err = errors.New("the result differs from that without faults")
	}
	beside()
	if o.err != nil {
		o.logs = d.LogTail(20)
	}
	w.bad.Set()
	if err := errors.Join(d.Stop(), d.Remove()); err != nil && o.err == nil {
		// A build that hung may leave mounts; a build that ended well may not.
		var left *lab.LeftMountsError
		if s.name == "ours" || !errors.As(err, &left) {
			o.err = err
		}
	}
	return o
}

// beside starts a build that reads from another registry. The result ends it.
func (b *bench) beside(ctx context.Context, d *lab.Daemon, from *fault.Proxy) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.build(ctx, d, from.Addr+"/"+b.foreign.Tag(), cell{work: all}) // its registry hangs, and it is cancelled
	}()
	for from.Hits() == 0 && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
	return func() { cancel(); <-done }
}

// build runs the workload of a cell on an image and returns what it gave.
func (b *bench) build(ctx context.Context, d *lab.Daemon, ref string, c cell) (string, error) {
	dir, err := os.MkdirTemp(b.dir, "out-")
	if err != nil {
		return "", fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	opts := lab.BuildOptions{Dockerfile: "FROM " + ref + "\n"}
	if c.fault.pause {
		opts.Dockerfile += "ENV PAUSE=60ms\n"
	}
	if c.work == image {
		tarball := filepath.Join(dir, "image.tar")
		opts.Dockerfile += "RUN [\"/reader\"]\n"
		opts.Exports = []client.ExportEntry{{Type: client.ExporterOCI, Output: func(map[string]string) (io.WriteCloser, error) { return os.Create(tarball) }}}
		if _, err := lab.Build(ctx, d.Addr, opts); err != nil {
			return "", err
		}
		return "", b.checkImage(tarball)
	}
	args := `"all", "/a", "/b"`
	if c.work == some {
		args = `"some", "2", "/a", "/b"`
	}
	opts.Dockerfile += "RUN [\"/reader\", \"/out.txt\", " + args + "]\nFROM scratch\nCOPY --from=0 /out.txt /\n"
	opts.OutputDir = dir
	if _, err := lab.Build(ctx, d.Addr, opts); err != nil {
		return "", err
	}
	got, err := os.ReadFile(filepath.Join(dir, "out.txt"))
	return string(got), err
}

// checkImage checks that an exported image has the base's layers, and that each
// blob in it has the digest that it is named by.
func (b *bench) checkImage(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	missing := map[digest.Digest]bool{}
	for _, l := range b.image.Layers {
		missing[l.Digest] = true
	}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the exported image: %w", err)
		}
		hex, ok := strings.CutPrefix(h.Name, "blobs/sha256/")
		if !ok || hex == "" {
			continue
		}
		var data bytes.Buffer
		if _, err := io.Copy(&data, tr); err != nil {
			return fmt.Errorf("read the exported image: %w", err)
		}
		got := digest.FromBytes(data.Bytes())
		if got.Encoded() != hex {
			return fmt.Errorf("exported blob %s has the digest %s", hex, got)
		}
		delete(missing, got)
	}
	if len(missing) > 0 {
		return fmt.Errorf("the exported image misses %d layers of the base", len(missing))
	}
	return nil
}
