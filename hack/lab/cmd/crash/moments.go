package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/hack/lab"
)

// moment is what the daemon does when the fault comes.
type moment struct {
	name  string
	state string // what the state directory holds before
	// do is the work during which it comes. It is given a started daemon, but for
	// the start itself, and returns what it made.
	do func(ctx context.Context, b *bench, d *lab.Daemon) (output, error)
	// redo is the same work after the fault; nil: do.
	redo   func(ctx context.Context, b *bench, d *lab.Daemon) (output, error)
	forget bool // the cache may be empty afterwards

	// Of the run without a fault:
	points int    // write points
	want   output // what do and redo make
	bytes  int64  // of layers, from the registry
}

func (m *moment) called() string { return m.name }

// again is what is done after the fault.
func (m *moment) again() func(ctx context.Context, b *bench, d *lab.Daemon) (output, error) {
	if m.redo != nil {
		return m.redo
	}
	return m.do
}

// States of a state directory.
const (
	stateEmpty  = "empty"  // a daemon has run on it
	stateSeeded = "seeded" // the base is mounted lazily, and a step on it is cached
	stateLocal  = "local"  // and its layers were made local for an export
)

var moments = []*moment{
	{name: "start", state: stateSeeded, do: nothing, redo: buildSeed},
	{name: "idle", state: stateSeeded, do: idle, redo: buildSeed},
	{name: "pull", state: stateEmpty, do: buildSeed},
	{name: "step", state: stateSeeded, do: buildStep},
	{name: "export", state: stateSeeded, do: export},
	{name: "prune", state: stateLocal, do: prune, redo: buildSeed, forget: true},
}

// output is what a build made: contents by name.
type output map[string]string

func (o output) diff(want output) error {
	for name, content := range want {
		if o[name] != content {
			return fmt.Errorf("%s has %d bytes that differ from the %d of a run without a fault", name, len(o[name]), len(content))
		}
	}
	return nil
}

const seedStep = `RUN python3 -c 'import json, hashlib, glob; print(json.dumps({p: hashlib.sha256(open(p, "rb").read()).hexdigest() for p in sorted(glob.glob("/usr/lib/python3*/*.py"))[:40]}))' > /seed
`

const moreSteps = `COPY hello.c /src/hello.c
RUN gcc -O2 -o /hello /src/hello.c && /hello > /said && mkdir -p /d/e && cp /usr/lib/os-release /d/e/ && ln /seed /d/seed
RUN cat /usr/share/common-licenses/* > /licenses && rm -r /d/e && python3 -c 'import email, http.client, sqlite3' && mv /said /d/said
`

var helloFiles = map[string]string{"hello.c": "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n"}

// nothing is for the start: the fault comes before there is a daemon.
func nothing(context.Context, *bench, *lab.Daemon) (output, error) { return nil, nil }

// idle is for a daemon that nobody uses: the fault comes some time after the start.
func idle(ctx context.Context, b *bench, _ *lab.Daemon) (output, error) {
	select {
	case <-time.After(time.Duration(rand.IntN(2500)) * time.Millisecond):
	case <-ctx.Done():
	}
	return nil, nil
}

// buildSeed runs the step that the seeded state has in its cache.
func buildSeed(ctx context.Context, b *bench, d *lab.Daemon) (output, error) {
	return b.build(ctx, d, lab.BuildOptions{
		Dockerfile: "FROM " + b.base + " AS base\n" + seedStep + "FROM scratch\nCOPY --from=base /seed /\n",
	})
}

// buildStep runs steps on top of it, and looks at all that they wrote.
func buildStep(ctx context.Context, b *bench, d *lab.Daemon) (output, error) {
	return b.build(ctx, d, lab.BuildOptions{
		Dockerfile: "FROM " + b.base + " AS base\n" + seedStep + moreSteps + "FROM scratch\nCOPY --from=base /seed /hello /licenses /out/\nCOPY --from=base /d /d\n",
		Files:      helloFiles,
	})
}

// build runs a build and reads its result.
func (b *bench) build(ctx context.Context, d *lab.Daemon, o lab.BuildOptions) (output, error) {
	dir, err := os.MkdirTemp(b.dir, "out-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	o.OutputDir = dir
	res, err := lab.Build(ctx, d.Addr, o)
	if err != nil {
		return nil, err
	}
	b.seedCached = false
	for _, s := range res.Steps {
		if strings.Contains(s.Name, "RUN python3 -c 'import json, hashlib") {
			b.seedCached = s.Cached
		}
	}
	out := output{}
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir)] = string(content)
		return err
	})
	if err == nil && len(out) == 0 {
		err = errors.New("the build made nothing")
	}
	return out, err
}

// export makes the base's layers local. What it makes are its blobs, each of which
// must have its digest.
func export(ctx context.Context, b *bench, d *lab.Daemon) (output, error) {
	path := filepath.Join(b.dir, "image.tar")
	defer os.Remove(path)
	_, err := lab.Build(ctx, d.Addr, lab.BuildOptions{
		Dockerfile: "FROM " + b.base + "\n" + seedStep,
		Exports: []client.ExportEntry{{Type: client.ExporterOCI, Attrs: map[string]string{"name": "x"},
			Output: func(map[string]string) (io.WriteCloser, error) { return os.Create(path) }}},
	})
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blobs := map[string]bool{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("the exported image: %w", err)
		}
		hex, ok := strings.CutPrefix(h.Name, "blobs/sha256/")
		if !ok || hex == "" {
			continue
		}
		got, err := digest.FromReader(r)
		if err != nil {
			return nil, fmt.Errorf("the exported image: %w", err)
		}
		if got.Encoded() != hex {
			return nil, fmt.Errorf("the exported image has wrong bytes: %s is %s", hex, got)
		}
		blobs[hex] = true
	}
	out := output{}
	for _, l := range b.image.Layers {
		out[l.Digest.Encoded()] = fmt.Sprint(blobs[l.Digest.Encoded()])
	}
	return out, nil
}

// prune removes all there is.
func prune(ctx context.Context, b *bench, d *lab.Daemon) (output, error) {
	c, err := d.Client(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return nil, c.Prune(ctx, nil, client.PruneAll)
}
