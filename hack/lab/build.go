package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/tonistiigi/fsutil"
)

// BuildOptions describe a build with the Dockerfile frontend.
type BuildOptions struct {
	Dockerfile string
	Definition *llb.Definition      // to solve instead of a Dockerfile; many other options are the frontend's
	Files      map[string]string    // of the build context, by path
	Context    string               // a directory as build context, instead of Files
	Args       map[string]string    // build arguments
	Target     string               // stage to build; "" is the last
	NoCache    bool                 // run every step
	Attrs      map[string]string    // more of the frontend's options
	OutputDir  string               // where the result's files go; "" leaves them in the daemon's cache
	Exports    []client.ExportEntry // more outputs
	CacheTo    []client.CacheOptionsEntry
	CacheFrom  []client.CacheOptionsEntry
	Attach     []session.Attachable // secrets, ssh, credentials, ...
	Allow      []string             // entitlements
	Progress   io.Writer            // where to show the build as it runs, plain; nil shows nothing
}

// BuildResult is what a build gave.
type BuildResult struct {
	Wall     time.Duration
	Logs     string // what the steps wrote, and the progress, plain
	Response map[string]string
	Cached   int // steps that the cache had
	Steps    []*client.Vertex
}

// BuildError is a build that failed, with its progress output.
type BuildError struct {
	Err  error
	Logs string
}

func (e *BuildError) Error() string {
	return fmt.Sprintf("build: %v\n%s", e.Err, tail(e.Logs, 40))
}

// Unwrap returns the daemon's answer.
func (e *BuildError) Unwrap() error { return e.Err }

// Build runs one build on the daemon at addr (as in Daemon.Addr). Wall is the
// time from the request to the answer, the outputs included. A failed build is
// a BuildError, and the result then holds what is known.
func Build(ctx context.Context, addr string, opts BuildOptions) (*BuildResult, error) {
	dir, err := os.MkdirTemp("", "lab-build-")
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	defer os.RemoveAll(dir)
	solve, err := solveOptions(dir, opts)
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	c, err := client.New(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect to buildkitd at %s: %w", addr, err)
	}
	defer c.Close()

	result := &BuildResult{}
	var logs bytes.Buffer
	shown := io.Writer(&logs)
	if opts.Progress != nil {
		shown = io.MultiWriter(&logs, opts.Progress)
	}
	status := make(chan *client.SolveStatus)
	var watcher sync.WaitGroup
	watcher.Add(1)
	var watchErr error
	go func() {
		defer watcher.Done()
		watchErr = result.watch(status, shown)
	}()
	start := time.Now()
	answer, err := c.Solve(ctx, opts.Definition, solve, status)
	result.Wall = time.Since(start)
	watcher.Wait()
	result.Logs = logs.String()
	if err != nil {
		return result, &BuildError{Err: err, Logs: result.Logs}
	}
	if watchErr != nil {
		return result, fmt.Errorf("show the build: %w", watchErr)
	}
	result.Response = answer.ExporterResponse
	return result, nil
}

// solveOptions turns opts into the client's; dir is for what has to lie in files.
func solveOptions(dir string, opts BuildOptions) (client.SolveOpt, error) {
	var none client.SolveOpt
	if opts.Context == "" {
		opts.Context = filepath.Join(dir, "context")
		if err := writeFiles(opts.Context, opts.Files); err != nil {
			return none, err
		}
	}
	dockerfile := filepath.Join(dir, "dockerfile")
	if err := writeFiles(dockerfile, map[string]string{"Dockerfile": opts.Dockerfile}); err != nil {
		return none, err
	}
	contextFS, err := fsutil.NewFS(opts.Context)
	if err != nil {
		return none, fmt.Errorf("open the build context: %w", err)
	}
	dockerfileFS, err := fsutil.NewFS(dockerfile)
	if err != nil {
		return none, fmt.Errorf("open the Dockerfile's directory: %w", err)
	}
	attrs := map[string]string{"filename": "Dockerfile"}
	maps.Copy(attrs, opts.Attrs)
	for k, v := range opts.Args {
		attrs["build-arg:"+k] = v
	}
	if opts.Target != "" {
		attrs["target"] = opts.Target
	}
	if opts.NoCache {
		attrs["no-cache"] = ""
	}
	exports := opts.Exports
	if opts.OutputDir != "" {
		exports = append(exports[:len(exports):len(exports)], client.ExportEntry{Type: client.ExporterLocal, OutputDir: opts.OutputDir})
	}
	frontend := "dockerfile.v0"
	if opts.Definition != nil {
		frontend, attrs = "", nil
	}
	return client.SolveOpt{
		Frontend:            frontend,
		FrontendAttrs:       attrs,
		LocalMounts:         map[string]fsutil.FS{"context": contextFS, "dockerfile": dockerfileFS},
		Exports:             exports,
		CacheExports:        opts.CacheTo,
		CacheImports:        opts.CacheFrom,
		Session:             opts.Attach,
		AllowedEntitlements: opts.Allow,
	}, nil
}

func writeFiles(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make the directory of %s: %w", name, err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// watch shows the build's status on w, and collects it, until the status ends.
func (r *BuildResult) watch(status <-chan *client.SolveStatus, w io.Writer) error {
	display, err := progressui.NewDisplay(w, progressui.PlainMode)
	if err != nil {
		for range status { // or the build would wait for us
		}
		return err
	}
	shown := make(chan *client.SolveStatus)
	done := make(chan error, 1)
	go func() {
		_, err := display.UpdateFrom(context.Background(), shown)
		done <- err
	}()
	steps := map[string]*client.Vertex{}
	for s := range status {
		for _, v := range s.Vertexes {
			old := steps[v.Digest.String()]
			if old == nil {
				r.Steps = append(r.Steps, v)
			} else if old.Cached && !v.Cached {
				// Its result is loaded, and the progress of that is its own.
				cached := *v
				cached.Cached = true
				v = &cached
			}
			steps[v.Digest.String()] = v
		}
		shown <- s
	}
	close(shown)
	for i, v := range r.Steps {
		r.Steps[i] = steps[v.Digest.String()]
		if r.Steps[i].Cached {
			r.Cached++
		}
	}
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
