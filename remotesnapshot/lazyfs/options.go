package lazyfs

import (
	"errors"
	"path/filepath"
	"time"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// Options of an FS. Zero values are the documented defaults.
type Options struct {
	// Root keeps blobs and TOCs; required.
	Root string
	// MountRoot gets the mount points of the FUSE server; required. Short paths
	// are good ones: overlay's options have to fit a page.
	MountRoot string
	// UserXattr shows opaque directories the way overlays with userxattr want.
	UserXattr bool

	// Hosts says where to ask for the blobs of an image reference; required.
	Hosts func(reference string) blob.Hosts
	// Sessions knows which sessions Hosts may use, and which may read what; nil:
	// there are none, and all requests are as Hosts makes them.
	Sessions Sessions
	// HostsOf is Hosts for requests that one session makes alone, or, for "",
	// nobody; nil: Hosts.
	HostsOf func(reference, session string) blob.Hosts

	// TTL is how long a layer stays open after its last hold; 0: 2 minutes,
	// below 0: not at all.
	TTL time.Duration
	// KeepBytes is how much disk space the blobs and TOCs may keep that no open
	// layer needs, see FS.Collect; 0: 10 GiB, below 0: none.
	KeepBytes int64

	// MaxBytes is how much disk space the blobs may have that are not in another
	// store as well, see FS.Evict; 0: no limit.
	MaxBytes int64

	// ProfileDir keeps what steps have read of layers, see package profile; "":
	// Root/profiles. Several daemons may share it, and it may be a copy of another
	// machine's.
	ProfileDir string
	// NoProfiles turns them off.
	NoProfiles bool
	// NoImages serves all layers by FUSE alone, also where the kernel could show them
	// as EROFS images.
	NoImages bool
	// OnError, when set, is told of errors that no caller sees. It must not block.
	OnError func(error)

	// Layer is for all layers: sizes of caches, prefetch, background fetch. Its
	// ReadTimeout is thrice Blob.GiveUp when it is 0.
	Layer layer.Options
	// Blob is for all blobs: connections and time limits. Its Root is ours.
	Blob blob.Options
	// TOC bounds what a table of contents may cost.
	TOC estargz.Limits
	// Debug logs every FUSE message.
	Debug bool
}

func (o Options) withDefaults() (Options, error) {
	if o.Root == "" || o.MountRoot == "" || o.Hosts == nil {
		return o, errors.New("lazyfs: Root, MountRoot and Hosts are required")
	}
	if o.Sessions == nil {
		o.Sessions = nobody{}
	}
	if o.HostsOf == nil {
		hosts := o.Hosts
		o.HostsOf = func(reference, _ string) blob.Hosts { return hosts(reference) }
	}
	if o.ProfileDir == "" {
		o.ProfileDir = filepath.Join(o.Root, "profiles")
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	if o.TTL == 0 {
		o.TTL = 2 * time.Minute
	}
	if o.Blob.GiveUp == 0 {
		o.Blob.GiveUp = blob.DefaultGiveUp
	}
	if o.Layer.ReadTimeout == 0 {
		// The blob's error says more, so it is to come first.
		o.Layer.ReadTimeout = 3 * o.Blob.GiveUp
	}
	if o.KeepBytes == 0 {
		o.KeepBytes = 10 << 30
	}
	return o, nil
}
