package lazyfs

import (
	"context"
	"fmt"
	"time"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
)

// Sessions is who knows which sessions may read what. A reference stands for its
// repository.
type Sessions interface {
	// Hold lets Options.Hosts use the sessions until release is called.
	Hold(reference string, sessions func() []string) (release func())
	// Prove returns nil when one of the sessions is known to be allowed to read,
	// or check says so for one of them; check is called with "" when none is
	// connected. Errors are those of remotesnapshot.Lazy.Authorize.
	Prove(ctx context.Context, reference string, sessions func() []string, check func(ctx context.Context, id string) error) error
	// Vouch notes that the sessions may read.
	Vouch(reference string, ids ...string)
}

// nobody is Sessions for a file system without any: all requests are alike, and
// nothing is remembered of them.
type nobody struct{}

func (nobody) Hold(string, func() []string) func() { return func() {} }
func (nobody) Vouch(string, ...string)             {}
func (nobody) Prove(ctx context.Context, _ string, _ func() []string, check func(context.Context, string) error) error {
	return check(ctx, "")
}

// Hold implements remotesnapshot.Lazy. What is held is mounted, or will be, and not evicted.
func (fs *FS) Hold(src remotesnapshot.Source, s remotesnapshot.Sessions) (release func()) {
	unpin := fs.pin(src.Digest)
	if s == nil {
		return unpin
	}
	end := fs.opts.Sessions.Hold(src.Reference, s)
	return func() {
		end()
		unpin()
	}
}

// Vouch implements remotesnapshot.Lazy.
func (fs *FS) Vouch(src remotesnapshot.Source, s remotesnapshot.Sessions) {
	if s != nil {
		fs.opts.Sessions.Vouch(src.Reference, s()...)
	}
}

// Authorize implements remotesnapshot.Lazy.
func (fs *FS) Authorize(ctx context.Context, src remotesnapshot.Source, s remotesnapshot.Sessions) error {
	if err := src.Digest.Validate(); err != nil {
		return named("authorize", src, fmt.Errorf("%w: %w", cerrdefs.ErrInvalidArgument, err))
	}
	err := fs.opts.Sessions.Prove(ctx, src.Reference, s, func(ctx context.Context, id string) error {
		return fs.mayRead(ctx, src, id)
	})
	return failed(ctx, "authorize", src, err)
}

// A registry that can't say is asked again, after pauses that double from the first to the
// last of these, for a minute, or as long as a read would wait if that is less.
const (
	rightsPause    = 200 * time.Millisecond
	mostRightPause = 2 * time.Second
	mostRightsTime = time.Minute
)

// mayRead asks whether a session may read src's layer; "" asks as nobody.
func (fs *FS) mayRead(ctx context.Context, src remotesnapshot.Source, session string) error {
	// Without an origin: what one session may read is nobody else's source.
	b, err := fs.blobs.Open(src.Digest, blob.Origin{})
	if err != nil {
		return err
	}
	defer closeQuietly(layerBlob{b})
	o := blob.Origin{Reference: src.Reference, Hosts: fs.opts.HostsOf(src.Reference, session)}
	if o.Hosts == nil {
		return fmt.Errorf("no hosts for %s: %w", src.Reference, cerrdefs.ErrUnavailable)
	}
	limit := min(fs.opts.Blob.GiveUp, mostRightsTime)
	begin, pause := time.Now(), rightsPause
	for {
		err := b.CheckOrigin(ctx, o)
		if err == nil || isVerdict(err) || time.Since(begin)+pause > limit {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		pause = min(2*pause, mostRightPause)
	}
}

// isVerdict says whether a registry has answered that a session may not read, or the
// session has gone and nobody can ask for it.
func isVerdict(err error) bool {
	return cerrdefs.IsUnauthorized(err) || cerrdefs.IsPermissionDenied(err) || cerrdefs.IsNotFound(err) || cerrdefs.IsFailedPrecondition(err)
}
