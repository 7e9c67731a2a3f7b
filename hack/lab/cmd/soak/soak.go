package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/lazykit/lazykit/hack/lab"
)

// soak is one run.
type soak struct {
	time    time.Duration
	seed    uint64
	builds  int
	program string

	rnd      *rand.Rand
	way      *faulty
	host     string // of way
	images   []string
	opts     lab.DaemonOptions
	daemon   *lab.Daemon
	veryLong time.Duration // a build that takes longer hangs

	start *lab.Vitals // the first measurement of all
	first *lab.Vitals // the first one of this daemon
	last  lab.Vitals

	count struct {
		rounds, prunes, terms, kills, faults int
		builds, cancelled, killed, refused   int32
	}
}

func (s *soak) run(ctx context.Context) (err error) {
	s.rnd, s.veryLong = rand.New(rand.NewPCG(s.seed, 0)), 5*time.Minute
	stop, err := s.setUp(ctx)
	if err != nil {
		return err
	}
	defer stop()
	defer func() { err = errors.Join(err, s.end()) }()
	for end := time.Now().Add(s.time); ctx.Err() == nil && (time.Now().Before(end) || s.count.rounds < 2); {
		if err := s.round(ctx); err != nil {
			return fmt.Errorf("round %d: %w\n%s", s.count.rounds, err, s.daemon.LogTail(20))
		}
	}
	return ctx.Err()
}

// setUp makes images, registry and daemon.
func (s *soak) setUp(ctx context.Context) (stop func(), err error) {
	base, err := lab.FindBase("demo")
	if err != nil {
		return nil, err
	}
	registry, err := lab.StartRegistry(ctx, lab.RegistryOptions{})
	if err != nil {
		return nil, err
	}
	stop = registry.Stop
	defer func() {
		if err != nil {
			stop()
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return stop, err
	}
	s.way, s.host = newFaulty(registry.Direct), l.Addr().String()
	quiet := log.New(io.Discard, "", 0) // it complains of what is cut, which is meant
	s.way.proxy.ErrorLog = quiet
	server := &http.Server{Handler: s.way, ErrorLog: quiet, ReadHeaderTimeout: time.Minute}
	go server.Serve(l)
	stop = func() {
		server.Close()
		registry.Stop()
	}
	for _, f := range []lab.Format{lab.EStargz, lab.ZstdChunked, lab.Gzip} {
		var img *lab.Image
		if f == lab.Gzip { // below a lazy layer
			img, err = lab.MixedImage(ctx, base, lab.Packing{Format: lab.Gzip}, lab.Packing{Format: lab.EStargz})
		} else {
			img, err = lab.MakeImage(ctx, base, f)
		}
		if err != nil {
			return stop, err
		}
		if _, err = lab.Push(ctx, registry.Direct, img); err != nil {
			return stop, err
		}
		s.images = append(s.images, s.host+"/"+img.Tag())
	}
	cache, err := lab.CacheDir()
	if err != nil {
		return stop, err
	}
	if s.program == "" {
		p, err := lab.Ours(ctx)
		if err != nil {
			return stop, err
		}
		s.program = p.Buildkitd
	}
	if err = os.MkdirAll(filepath.Join(cache, "run"), 0o755); err != nil {
		return stop, err
	}
	root, err := os.MkdirTemp(filepath.Join(cache, "run"), "soak-")
	if err != nil {
		return stop, err
	}
	s.opts = lab.DaemonOptions{
		Program: s.program, Root: root, Snapshotter: "stargz", Registries: []string{s.host}, Debug: true,
		Log:    root + ".log",
		Config: "[history]\n  maxEntries = 5\n[worker.oci.stargzSnapshotter]\n  resolve_result_entry_ttl_sec = 1\n",
	}
	s.daemon, err = lab.StartDaemon(ctx, s.opts)
	return stop, err
}

// end stops the daemon and removes what it kept, but for its log after a failure.
func (s *soak) end() error {
	err := s.checkLast()
	err = errors.Join(err, s.daemon.Stop())
	err = errors.Join(err, s.daemon.Remove(), os.RemoveAll(s.opts.Root))
	if err == nil {
		os.Remove(s.opts.Log)
	}
	return err
}

// round is a number of builds at a time, with one thing that happens meanwhile, then
// a prune and a measurement.
func (s *soak) round(ctx context.Context) error {
	s.count.rounds++
	var killed, faulty atomic.Bool
	jobs := s.jobs()
	errs := make(chan error, len(jobs))
	limit := make(chan struct{}, s.builds)
	var running sync.WaitGroup
	addr := s.daemon.Addr
	for _, j := range jobs {
		running.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			errs <- s.build(ctx, addr, j, &killed, &faulty)
		})
	}
	event, err := s.happen(ctx, &killed, &faulty)
	running.Wait()
	close(errs)
	for e := range errs {
		err = errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", event, err)
	}
	if err := s.settle(ctx, !killed.Load()); err != nil {
		return err
	}
	fmt.Printf("round %3d: %d builds, %-22s %v\n", s.count.rounds, len(jobs), event, s.last)
	return nil
}

// happen does one thing while builds run.
func (s *soak) happen(ctx context.Context, killed, faulty *atomic.Bool) (string, error) {
	pause(ctx, time.Duration(s.rnd.IntN(3000))*time.Millisecond)
	what := s.rnd.IntN(8)
	if s.count.rounds == 1 {
		what = 0 // the first round is what the others are compared with
	}
	switch what {
	case 1, 2, 3:
		fault := int32(1 + s.rnd.IntN(faults-1))
		s.count.faults++
		faulty.Store(true)
		s.way.fault.Store(fault)
		pause(ctx, time.Second+time.Duration(s.rnd.IntN(4000))*time.Millisecond)
		s.way.fault.Store(noFault)
		return map[int32]string{answer503: "503", cutBodies: "cut connections"}[fault], nil
	case 4, 5:
		s.count.prunes++
		return "a prune", s.prune(ctx)
	case 6:
		killed.Store(true)
		s.count.kills++
		err := s.checkLast()
		s.daemon.Kill()
		return "SIGKILL", errors.Join(err, s.restart(ctx))
	case 7:
		killed.Store(true)
		s.count.terms++
		err := s.checkLast()
		// Builds under way go on to their end.
		return "SIGTERM", errors.Join(err, s.daemon.Stop(), s.restart(ctx))
	}
	return "nothing else", nil
}

// restart starts the daemon again on what the one before left.
func (s *soak) restart(ctx context.Context) (err error) {
	s.first = nil
	old := s.daemon
	if s.daemon, err = lab.StartDaemon(ctx, s.opts); err != nil {
		s.daemon = old
		return err
	}
	return nil
}

// checkLast compares the last measurement of a daemon with its first one.
func (s *soak) checkLast() error {
	if s.first == nil {
		return nil
	}
	return errors.Join(compare(*s.first, s.last), compareRoot(*s.start, s.last))
}

// settle prunes everything and measures; built says that this daemon has built a whole
// round, so that the measurement is one that others may be compared with. What was used
// last stays open for a second, so it measures again until that is no less, and what
// is compared with others is low enough, for 45 s.
func (s *soak) settle(ctx context.Context, built bool) error {
	s.count.prunes++
	var before int64
	for range 30 {
		if err := s.prune(ctx); err != nil {
			return err
		}
		pause(ctx, 1500*time.Millisecond)
		var err error
		if s.last, err = s.daemon.Vitals(ctx); err != nil {
			return err
		}
		low := s.start == nil || compareRoot(*s.start, s.last) == nil && (s.first == nil || compare(*s.first, s.last) == nil)
		if low && s.last.Disk == before {
			break
		}
		before = s.last.Disk
	}
	if s.first == nil && built {
		v := s.last
		s.first = &v
	}
	if s.start == nil {
		s.start = s.first
	}
	return nil
}

func (s *soak) prune(ctx context.Context) error {
	c, err := s.daemon.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Prune(ctx, nil, client.PruneAll)
}

// job is one build.
type job struct {
	opts   lab.BuildOptions
	cancel time.Duration // after so long; 0: never
}

// steps are what builds do with the base.
var steps = []string{
	"RUN python3 -c 'import json, sys, %[2]s; print(json.dumps([%[1]d]))'",
	"RUN echo 'int main(void){return %[1]d%%2;}' > /x.c && gcc -o /x /x.c && rm /x.c",
	"RUN tar cf /dev/zero /usr/lib/python3* && echo %[1]d",
	"RUN ls -lR /usr/include | wc -l > /n-%[1]d",
	"RUN head -c 1000000 /dev/urandom > /data-%[1]d",
}

var modules = []string{"os", "decimal", "http.client", "sqlite3", "unittest", "email.parser"}

// jobs are the builds of a round. Some steps are the same as in other rounds.
func (s *soak) jobs() (jobs []job) {
	for range 2 * s.builds {
		text := "FROM " + s.images[s.rnd.IntN(len(s.images))] + " AS b\n"
		for range 1 + s.rnd.IntN(3) {
			text += fmt.Sprintf(steps[s.rnd.IntN(len(steps))], s.rnd.IntN(20), modules[s.rnd.IntN(len(modules))]) + "\n"
		}
		j := job{opts: lab.BuildOptions{Dockerfile: text, NoCache: s.rnd.IntN(3) == 0}}
		switch s.rnd.IntN(6) {
		case 0:
			j.opts.Dockerfile += "FROM scratch\nCOPY --from=b /usr/include /usr/include\n"
		case 1:
			j.opts.Exports = []client.ExportEntry{{Type: client.ExporterOCI, Attrs: map[string]string{"name": "x"},
				Output: func(map[string]string) (io.WriteCloser, error) { return discard{}, nil }}}
		case 2:
			j.cancel = time.Duration(1+s.rnd.IntN(2000)) * time.Millisecond
		}
		jobs = append(jobs, j)
	}
	return jobs
}

// build runs a job. Its error is one that it should not have had.
func (s *soak) build(ctx context.Context, addr string, j job, killed, faulty *atomic.Bool) error {
	ctx, stop := context.WithTimeout(ctx, s.veryLong)
	defer stop()
	if j.cancel > 0 {
		ctx, stop = context.WithTimeout(ctx, j.cancel)
		defer stop()
	}
	atomic.AddInt32(&s.count.builds, 1)
	_, err := lab.Build(ctx, addr, j.opts)
	switch {
	case err == nil:
		return nil
	case killed.Load():
		atomic.AddInt32(&s.count.killed, 1)
		return nil
	case j.cancel > 0 && ctx.Err() != nil:
		atomic.AddInt32(&s.count.cancelled, 1)
		return nil
	case faulty.Load() && registryFailed.MatchString(err.Error()):
		atomic.AddInt32(&s.count.refused, 1)
		return nil
	}
	return fmt.Errorf("build of %q: %w", strings.ReplaceAll(j.opts.Dockerfile, "\n", "; "), err)
}

// registryFailed is what the registry's faults look like where nothing waits for its
// return: the frontend's requests for manifests do not.
var registryFailed = regexp.MustCompile(`503 Service Unavailable|unexpected EOF|: EOF|connection reset`)

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
