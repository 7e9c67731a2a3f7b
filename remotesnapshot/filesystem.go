package remotesnapshot

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"
	digest "github.com/opencontainers/go-digest"
)

// FileSystem serves layers from directories. The snapshotter asks it under
// containerd's metadata lock, so Open never waits for the network. A FileSystem
// may also have the method Usage of [Lazy], which is used where it is there.
type FileSystem interface {
	// Open returns the layer of src, counted: each Open is paired with one
	// Layer.Close. When restore is false and the layer was not resolved before,
	// the error is errdefs.ErrUnavailable. When restore is true (a snapshot that
	// is committed already), an unresolved layer is returned as it is, and
	// Resolve must succeed before its contents can be read.
	Open(src Source, restore bool) (Layer, error)
}

// Xattrs says what a directory answers when it is asked for the value of an
// extended attribute in a layer that has none at all. Lists of attributes are
// empty in both.
type Xattrs uint8

const (
	// FastXattrs answers that they are not supported, so that the kernel stops
	// asking: for build steps, and for whoever reads, hashes or copies files. The
	// first look at a file through overlay asks for one, and costs a third without.
	FastXattrs Xattrs = iota
	// ExactXattrs answers that there is no such attribute, as a file system with
	// attributes does. Programs that compare trees take nothing else: BuildKit's
	// overlay differ asks for file capabilities, fails on "not supported", and then
	// reads the whole base.
	ExactXattrs
)

// xattrsFor chooses by what a snapshot is for: steps run on active ones, and
// views are what trees are compared with. Options can ask for
// exact answers in both.
func (s *Snapshotter) xattrsFor(kind snapshots.Kind) Xattrs {
	if kind == snapshots.KindView || s.opts.ExactXattrs {
		return ExactXattrs
	}
	return FastXattrs
}

// Layer is a hold on one lazily readable layer. Its methods are safe for
// concurrent use; none is called after Close.
type Layer interface {
	// Dir is a directory that shows the layer in overlayfs terms. n counts the
	// occurrences of the same layer in one chain, from 0: each n has a directory
	// of its own, since overlayfs refuses one that occurs twice. It fails for a
	// layer that is not resolved, and it never waits for the network.
	Dir(n int, x Xattrs) (string, error)
	// Resolve makes an unresolved layer readable, over the network if it must.
	// Nothing to do, and free, for a resolved one.
	Resolve(ctx context.Context) error
	// Close ends the hold. Directories stay valid until the last hold ends.
	Close() error
}

// usager is the ability to tell a layer's disk space: [Lazy.Usage].
type usager interface {
	Usage(dgst digest.Digest) (int64, error)
}
