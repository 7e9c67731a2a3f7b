package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/hack/lab/link"
)

// RegistryOptions describe a registry. The zero value is one with the contents
// kept in the cache, and a link without limits.
type RegistryOptions struct {
	Dir      string     // of its contents; "" is a directory in the cache, so that images are pushed once
	Upstream string     // URL of another registry to stand in front of, instead of Dir
	Addr     string     // of the direct port; "" is any port on 127.0.0.1
	Shape    link.Shape // of the link
	Log      string     // file for its output, appended to; "" discards it
}

// Registry is a registry process on loopback. Its methods may be called from
// several goroutines.
type Registry struct {
	Direct string // host:port without limits or counts, for pushes
	Link   string // host:port behind the link

	control string
	dir     string
	stdin   io.Closer
	exited  chan struct{}
	err     error // of the process; valid after exited
}

// StartRegistry starts a registry process and returns when it answers. It is a
// process of its own so that its work does not count as that of a daemon under
// test, and it ends when this one does.
func StartRegistry(ctx context.Context, opts RegistryOptions) (_ *Registry, err error) {
	program, err := goBuild(ctx, "lab-registry", "./hack/lab/cmd/registry")
	if err != nil {
		return nil, err
	}
	if opts.Dir == "" && opts.Upstream == "" {
		cache, err := CacheDir()
		if err != nil {
			return nil, err
		}
		opts.Dir = filepath.Join(cache, "registry")
	}
	args := []string{"-dir", opts.Dir, "-upstream", opts.Upstream, "-rtt", opts.Shape.RTT.String(),
		"-total", fmt.Sprint(opts.Shape.Total), "-per-conn", fmt.Sprint(opts.Shape.PerConn)}
	if opts.Addr != "" {
		args = append(args, "-addr", opts.Addr)
	}
	cmd := exec.Command(program, args...)
	if opts.Log != "" {
		log, err := os.OpenFile(opts.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, fmt.Errorf("open the registry's log: %w", err)
		}
		defer log.Close()
		cmd.Stderr = log
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the registry: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the registry: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the registry: %w", err)
	}
	r := &Registry{stdin: stdin, dir: opts.Dir, exited: make(chan struct{})}
	var addrs struct{ Direct, Link, Control string }
	decodeErr := json.NewDecoder(stdout).Decode(&addrs)
	go func() {
		defer close(r.exited)
		io.Copy(io.Discard, stdout)
		r.err = cmd.Wait()
	}()
	if decodeErr != nil {
		r.Stop()
		return nil, fmt.Errorf("start the registry: it reported no address: %w", errors.Join(decodeErr, r.err))
	}
	r.Direct, r.Link, r.control = addrs.Direct, addrs.Link, addrs.Control
	return r, nil
}

// Stop ends the registry and waits for it.
func (r *Registry) Stop() {
	r.stdin.Close()
	<-r.exited
}

// Stats returns what was asked for over the link since the start or Reset.
func (r *Registry) Stats(ctx context.Context) (link.Stats, error) {
	var s link.Stats
	return s, r.ask(ctx, http.MethodGet, "/stats", nil, &s)
}

// Reset starts the counts anew.
func (r *Registry) Reset(ctx context.Context) error {
	return r.ask(ctx, http.MethodPost, "/reset", nil, nil)
}

// SetShape changes the link for connections made from now on.
func (r *Registry) SetShape(ctx context.Context, s link.Shape) error {
	return r.ask(ctx, http.MethodPost, "/shape", s, nil)
}

// Hold lets requests over the link for these blobs hang from now on; those that
// hung so far go on. Without arguments none hangs any more.
func (r *Registry) Hold(ctx context.Context, blobs ...digest.Digest) error {
	if blobs == nil {
		blobs = []digest.Digest{}
	}
	return r.ask(ctx, http.MethodPost, "/hold", blobs, nil)
}

// AddTails tells the link where the tables of contents of img's layers begin, so
// that Stats counts requests for contents apart.
func (r *Registry) AddTails(ctx context.Context, img *Image) error {
	tails := map[string]link.Tail{}
	for i, l := range img.Layers {
		loc, ok, err := img.TOC(i)
		if err != nil {
			return err
		}
		if ok {
			tails[l.Digest.String()] = link.Tail{TOC: loc.Offset, Size: l.Size}
		}
	}
	return r.ask(ctx, http.MethodPost, "/tails", tails, nil)
}

// Warm reads img's blobs as they lie in the registry's directory, so that the
// disk has no part in a measurement.
func (r *Registry) Warm(img *Image) error {
	for _, l := range img.Layers {
		hex := l.Digest.Encoded()
		file, err := os.Open(filepath.Join(r.dir, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data"))
		if err != nil {
			return fmt.Errorf("warm the registry's blob %s: %w", l.Digest, err)
		}
		_, err = io.Copy(io.Discard, file)
		file.Close()
		if err != nil {
			return fmt.Errorf("warm the registry's blob %s: %w", l.Digest, err)
		}
	}
	return nil
}

func (r *Registry) ask(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("ask the registry's link for %s: %w", path, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.control+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask the registry's link for %s: %w", path, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the registry's link for %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the registry's link for %s: %s", path, resp.Status)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("ask the registry's link for %s: %w", path, err)
	}
	return nil
}
