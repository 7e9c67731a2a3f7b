package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	et "github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/hack/lab"
)

// vitalsSlack is what two measurements of an idle daemon may differ by.
var vitalsSlack = lab.Vitals{RssAnon: 48 << 20, FDs: 16, Conns: 44, Goroutines: 24, Disk: 8 << 20}

// atRest prunes everything and waits until the daemon holds no more than before, which
// may be nil: layers stay open for a second after their last use.
func atRest(t *testing.T, d *lab.Daemon, before *lab.Vitals) lab.Vitals {
	t.Helper()
	var v lab.Vitals
	less := func() bool {
		return before == nil || v.RssAnon <= before.RssAnon+vitalsSlack.RssAnon && v.FDs <= before.FDs+vitalsSlack.FDs && v.Conns <= before.Conns+vitalsSlack.Conns &&
			v.Goroutines <= before.Goroutines+vitalsSlack.Goroutines && v.Mounts <= before.Mounts && v.Disk <= before.Disk+vitalsSlack.Disk
	}
	for range 15 {
		pruneAll(t, d)
		time.Sleep(1500 * time.Millisecond)
		var err error
		v, err = d.Vitals(testContext(t))
		require.NoError(t, err)
		if less() {
			break
		}
	}
	t.Logf("at rest: %v", v)
	if !less() {
		profile, err := d.Profile(testContext(t), "goroutine")
		require.NoError(t, err)
		t.Logf("%.8000s", profile)
		t.Fatalf("it holds %v, and before %v", v, *before)
	}
	return v
}

// watched is a daemon of ours whose layers close soon, and that tells its vitals.
func watched(t *testing.T, registries ...string) *lab.Daemon {
	t.Helper()
	return daemon(t, lab.DaemonOptions{
		Program: ours(t), Snapshotter: "stargz", Registries: registries, Debug: true,
		Config: "[worker.oci.stargzSnapshotter]\n  resolve_result_entry_ttl_sec = 1\n",
	})
}

// Fifty builds at once on twenty lazy images, most of them cancelled at some moment,
// twice: after the second time the daemon holds no more than after the first.
func TestManyBuildsCancelled(t *testing.T) {
	privileged(t)
	r := emptyRegistry(t)
	img := image(t, lab.EStargz)
	onLink(t, r, img)
	var refs []string
	for i := range 20 {
		made, err := img.With(t.TempDir(), fmt.Sprintf("many-%d", i), honest()(t))
		require.NoError(t, err)
		refs = append(refs, onLink(t, r, made))
	}
	d := watched(t, r.Link)
	one := func(ctx context.Context, i int) error {
		_, err := lab.Build(ctx, d.Addr, lab.BuildOptions{
			NoCache: true,
			Dockerfile: fmt.Sprintf("FROM %s AS b\nRUN cat /hostile-file && python3 -c 'import json; print(%d)' > /out\n"+
				"FROM scratch\nCOPY --from=b /out /usr/include/ /\n", refs[i%len(refs)], i),
		})
		return err
	}
	wave := func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		var running sync.WaitGroup
		for i := range 50 {
			ctx, cancel := testContext(t), context.CancelFunc(func() {})
			if i%5 != 0 {
				ctx, cancel = context.WithTimeout(ctx, time.Duration(rnd.IntN(15_000))*time.Millisecond)
			}
			running.Go(func() {
				defer cancel()
				if err := one(ctx, i); err != nil && ctx.Err() == nil {
					t.Errorf("build %d: %v", i, err)
				}
			})
		}
		running.Wait()
	}
	// BuildKit keeps the trees of the twenty images that it hashed last, and its solver
	// holds images whose pull was cancelled: once, and no more for the second wave.
	wave()
	before := atRest(t, d, nil)
	d.ResetPeakMemory()
	wave()
	t.Logf("most memory %.1f MB", float64(d.PeakMemory())/1e6)
	require.Less(t, d.PeakMemory(), int64(1<<30))
	// How many of the twenty trees are there is a matter of luck, and which layers are held
	// that were mounted: two of the base, and one of each.
	before.RssAnon += 128 << 20
	before.Mounts += 22
	before.FDs += 22
	atRest(t, d, &before)
}

// Ten thousand processes, three hundred at a time, read the files of a lazy image.
func TestManyReaders(t *testing.T) {
	privileged(t)
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	d := watched(t, r.Link)
	build(t, d, lab.BuildOptions{Dockerfile: "FROM " + base + "\nRUN true\n"})
	before := atRest(t, d, nil)
	d.ResetPeakMemory()
	res := build(t, d, lab.BuildOptions{Dockerfile: "FROM " + base + `
RUN find /usr /etc /var /lib -type f > /files && cat /files /files /files | shuf -n 10000 --random-source=/files > /ten && wc -l /ten && \
    xargs -a /ten -n 1 -P 300 cat > /dev/null
`})
	require.Contains(t, res.Logs, "10000 /ten")
	t.Logf("%v, most memory %.1f MB", res.Wall, float64(d.PeakMemory())/1e6)
	require.Less(t, d.PeakMemory(), int64(400<<20))
	atRest(t, d, &before)
}

// dataImage is the demo base with a layer of n files of a megabyte in /data that do
// not compress, and their sums in /sums, which is another layer.
func dataImage(t *testing.T, r *lab.Registry, tag string, n int) *lab.Image {
	t.Helper()
	img := image(t, lab.EStargz)
	onLink(t, r, img)
	src := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", tag))))
	var files []et.Entry
	var sums strings.Builder
	for i := range n {
		data := make([]byte, 1<<20)
		src.Read(data)
		files = append(files, et.File(fmt.Sprintf("data/%d", i), data))
		fmt.Fprintf(&sums, "%x  /res/%d\n", sha256.Sum256(data), i)
	}
	made, err := img.With(t.TempDir(), tag, packed(t, estargz.FormatEStargz, et.File("sums", []byte(sums.String()))),
		packed(t, estargz.FormatEStargz, files...))
	require.NoError(t, err)
	return made
}

// reader copies a file to standard output and dies of EINTR; signals do nothing to it
// once it has said that it is ready.
const reader = `$SIG{USR1} = sub { $n++ }; print STDERR "ready\n"; open(F, "<", $ARGV[0]) or die "open: $!"; ` +
	`while (1) { $r = sysread(F, $b, 1 << 20); die "read: $!" unless defined $r; last unless $r; print $b } print STDERR "signals: $n\n" if $n`

// Forty readers wait for a registry that hangs. Signals in a storm end none of their
// reads; those that are killed are gone at once; the others get their bytes.
func TestKilledAndSignalledReaders(t *testing.T) {
	privileged(t)
	r := emptyRegistry(t)
	img := dataImage(t, r, "readers", 40)
	ref := onLink(t, r, img)
	d := watched(t, r.Link)
	data := img.Layers[len(img.Layers)-1].Digest
	up, gone := watchFor("step-is-up"), watchFor("killed-are-gone")
	ended := make(chan error, 1)
	// The table of contents is here, and all that the step runs; the files are not.
	build(t, d, lab.BuildOptions{Dockerfile: "FROM " + ref + "\nRUN perl -e 'print 1' && ls /data && cat /sums > /dev/null && sha256sum /sums" +
		" && mkdir /warm && rmdir /warm && seq 1 | grep -c 1 | wc -l && sleep 0 && date && touch /f && rm /f\n"})
	go func() {
		_, err := lab.Build(testContext(t), d.Addr, lab.BuildOptions{
			Progress:   io.MultiWriter(up, gone),
			Files:      map[string]string{"reader.pl": reader, "step.sh": killStep},
			Dockerfile: "FROM " + ref + "\nCOPY reader.pl step.sh /\nRUN sh /step.sh\n",
		})
		ended <- err
	}()
	up.wait(t, ended)
	require.NoError(t, r.Hold(testContext(t), data))
	gone.wait(t, ended)
	require.NoError(t, r.Hold(testContext(t)))
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(60 * time.Second):
		t.Fatal("readers did not get their bytes within a minute of the registry's return")
	}
}

// killStep starts a reader of each file, sends them signals for two seconds, and kills
// every second one.
const killStep = `
mkdir /res
printf 'step-is-up\n'
sleep 4
for i in $(seq 0 39); do perl /reader.pl /data/$i > /res/$i 2> /res/$i.err & pids="$pids $!"; done
until [ $(cat /res/*.err | grep -c '^ready$') = 40 ]; do sleep 0.1; done
sleep 1
end=$(($(date +%s) + 3))
while [ $(date +%s) -lt $end ]; do kill -USR1 $pids || exit 1; done
n=0
for p in $pids; do
	if [ $((n % 2)) = 1 ]; then kill -KILL $p; wait $p; rm /res/$n; killed=yes; else left="$left $p"; fi
	n=$((n + 1))
done
printf 'killed-are-gone\n'
for p in $left; do wait $p || { cat /res/*.err; exit 1; }; done
grep -h '^signals: [0-9]' /res/*.err | wc -l
grep -q '^signals: ' /res/0.err || { printf 'no signal came\n'; exit 1; }
sha256sum --quiet --ignore-missing -c /sums
`

// loris is a way to a registry that sends one byte of some blob at a time once it is slow.
func loris(t *testing.T, host, blob string) (way string, slow *atomic.Bool) {
	t.Helper()
	slow = &atomic.Bool{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if slow.Load() && req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, blob) {
			w = &dripping{ResponseWriter: w, ctx: req.Context()}
		}
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), slow
}

type dripping struct {
	http.ResponseWriter
	ctx context.Context
}

func (d *dripping) Write(p []byte) (n int, err error) {
	for ; n < len(p); n++ {
		select {
		case <-d.ctx.Done():
			return n, d.ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		if _, err := d.ResponseWriter.Write(p[n : n+1]); err != nil {
			return n, err
		}
		d.ResponseWriter.(http.Flusher).Flush()
	}
	return n, nil
}

// A registry that sends a byte now and then holds up the builds that read from it, and
// nobody else; they can be cancelled, and the daemon ends in time.
func TestSlowLoris(t *testing.T) {
	privileged(t)
	r := emptyRegistry(t)
	img := dataImage(t, r, "loris", 40)
	onLink(t, r, img)
	data := img.Layers[len(img.Layers)-1].Digest
	way, slow := loris(t, r.Direct, data.String())
	d := watched(t, r.Link, way)
	other := lab.BuildOptions{NoCache: true, Dockerfile: "FROM " + onLink(t, r, image(t, lab.EStargz)) + "\nRUN python3 -c 'import json' && cat /etc/os-release\n"}
	build(t, d, other)
	d.ResetPeakMemory()
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	up, started := watchFor("step-is-up"), watchFor("readers-started")
	ended := make(chan error, 1)
	go func() {
		_, err := lab.Build(ctx, d.Addr, lab.BuildOptions{Progress: io.MultiWriter(up, started), Dockerfile: "FROM " + way + "/" + img.Tag() + `
RUN cat /sums > /dev/null; printf 'step-is-up\n'; sleep 2; for f in /data/*; do cat $f > /dev/null & done; sleep 1; printf 'readers-started\n'; wait
`})
		ended <- err
	}()
	up.wait(t, ended)
	slow.Store(true)
	started.wait(t, ended)
	stop := beside(t, d, other)
	time.Sleep(5 * time.Second)
	n, longest := stop()
	t.Logf("%d builds beside, the longest took %v; most memory %.1f MB", n, longest, float64(d.PeakMemory())/1e6)
	require.Greater(t, n, 2)
	require.Less(t, d.PeakMemory(), int64(200<<20))
	select {
	case err := <-ended:
		t.Fatalf("the build on the slow registry has ended: %v", err)
	default:
	}
	cancel()
	select {
	case err := <-ended:
		require.Error(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("the build on the slow registry did not end when it was cancelled")
	}
	// What the kernel has asked for on behalf of the killed readers goes on for five
	// minutes at most, as long as bytes come. It holds up nothing: not the end either.
	require.NoError(t, d.Stop())
}
