package remotesnapshot

import (
	"context"

	digest "github.com/opencontainers/go-digest"
)

// Source says where a remote snapshot's layer comes from: snapshot labels,
// parsed once at the edge.
type Source struct {
	Reference   string            // image reference, host included: where to ask for the blob
	Digest      digest.Digest     // of the blob
	Annotations map[string]string // the layer descriptor's, as far as labels carried them (TOC digest, ...)
	Neighbours  []digest.Digest   // this layer and those above it in the image, for resolving ahead
	Sessions    []string          // BuildKit session ids that may authenticate
}

// ParseLabels reads the labels of a snapshot, BuildKit's temporary ones (with a
// unique suffix and session ids) included. ok is false when they do not describe
// a remote layer; an error says that they try to and are wrong.
func ParseLabels(labels map[string]string) (src Source, ok bool, err error) { panic("skeleton") }

// FileSystem serves layers from directories. The snapshotter asks it under
// containerd's metadata lock, so Open never waits for the network.
type FileSystem interface {
	// Open returns the layer of src, counted: each Open is paired with one
	// Layer.Close. When restore is false and the layer was not resolved before,
	// the error is errdefs.ErrUnavailable. When restore is true (a snapshot that
	// is committed already), an unresolved layer is returned as it is, and
	// Resolve must succeed before its contents can be read.
	Open(src Source, restore bool) (Layer, error)
}

// Layer is a hold on one lazily readable layer.
type Layer interface {
	// Dir is a directory that shows the layer in overlayfs terms. n counts the
	// occurrences of the same layer in one chain, from 0: each n has a directory
	// of its own, since overlayfs refuses one that occurs twice.
	Dir(n int) (string, error)
	// Resolve makes an unresolved layer readable, over the network if it must.
	// Nothing to do, and free, for a resolved one.
	Resolve(ctx context.Context) error
	// Close ends the hold. Directories stay valid until the last hold ends.
	Close() error
}

// Lazy is the ability that a worker and its cache manager use beside the
// snapshotter, keyed by digest, since containerd's metadata layer hides it.
type Lazy interface {
	// Resolve does all that needs the network for the layers of srcs, in
	// parallel and without any lock: it finds, fetches and verifies their TOCs.
	// Result i is nil when Open will succeed for srcs[i]; otherwise it says why
	// the layer can't be lazy.
	Resolve(ctx context.Context, srcs ...Source) []error
	// Attach lets reads of src's layer authenticate through src.Sessions from now on.
	Attach(src Source)
	// Usage is the disk space that the layer's blob and TOC hold, in bytes.
	Usage(dgst digest.Digest) (int64, error)
}
