package remotesnapshot

import (
	_ "crypto/sha256" // digests of labels are checked for
	_ "crypto/sha512" // algorithms that are linked in
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/reference"
	digest "github.com/opencontainers/go-digest"
)

// Labels of snapshots that others have to write or look for.
const (
	// LabelTarget on a Prepare names the committed snapshot that the caller
	// wants in the end: containerd's way to offer a remote snapshotter the chance
	// to make it at once.
	LabelTarget = "containerd.io/snapshot.ref"
	// LabelRemote is on every committed remote snapshot. Its value means nothing.
	LabelRemote = "containerd.io/snapshot/remote"
)

// remoteValue is what stargz-snapshotter writes too.
const remoteValue = "remote snapshot"

const (
	labelReference = "containerd.io/snapshot/remote/stargz.reference"
	labelDigest    = "containerd.io/snapshot/remote/stargz.digest"
	labelLayers    = "containerd.io/snapshot/remote/stargz.layers"
	labelSession   = "containerd.io/snapshot/remote/stargz.session" // .<n>, then BuildKit's suffix

	// What containerd's own unpacker writes (for any client, despite the name).
	labelCRIReference = "containerd.io/snapshot/cri.image-ref"
	labelCRIDigest    = "containerd.io/snapshot/cri.layer-digest"
	labelCRILayers    = "containerd.io/snapshot/cri.image-layers"

	// inherited is the prefix without which containerd's metadata database does
	// not hand a label to its snapshotter. An annotation that has another one
	// travels behind labelAnnotation.
	inherited       = "containerd.io/snapshot/"
	labelAnnotation = "containerd.io/snapshot/remote/lazykit.annotation."
)

// Annotations of layer descriptors that labels carry.
const (
	// AnnotationTOCDigest is the digest of an eStargz layer's TOC (of its JSON).
	AnnotationTOCDigest = "containerd.io/snapshot/stargz/toc.digest"
	// AnnotationUncompressedSize is the size of an eStargz layer's tar, in bytes.
	AnnotationUncompressedSize = "io.containers.estargz.uncompressed-size"
	// AnnotationPrefetch is how much of a layer stargz-snapshotter's clients want
	// to have prefetched, in bytes.
	AnnotationPrefetch = "containerd.io/snapshot/remote/stargz.prefetch"
)

// The zstd:chunked annotations have two spellings: containers/storage moved from
// the second to the first.
const (
	AnnotationZstdChecksum       = "io.github.containers.zstd-chunked.manifest-checksum"
	AnnotationZstdPosition       = "io.github.containers.zstd-chunked.manifest-position"
	AnnotationZstdChecksumLegacy = "io.containers.zstd-chunked.manifest-checksum"
	AnnotationZstdPositionLegacy = "io.containers.zstd-chunked.manifest-position"
)

// Source says where a remote snapshot's layer comes from: snapshot labels,
// parsed once at the edge.
type Source struct {
	Reference   string            // image reference, host included: where to ask for the blob
	Digest      digest.Digest     // of the blob
	Annotations map[string]string // the layer descriptor's, as far as labels carried them (TOC digest, ...); nil without
	Size        int64             // of the blob, in bytes; 0: not known
	Neighbours  []digest.Digest   // this layer and those above it in the image, for resolving ahead
}

// field is what one label tells of a source.
type field uint8

const (
	fieldReference field = iota
	fieldDigest
	fieldLayers
	fieldAnnotation
)

// known lists every label that a source is made of.
var known = func() map[string]struct {
	field      field
	annotation string
	second     bool // gives way to another label of the same field
} {
	type entry = struct {
		field      field
		annotation string
		second     bool
	}
	m := map[string]entry{
		labelReference:    {field: fieldReference},
		labelDigest:       {field: fieldDigest},
		labelLayers:       {field: fieldLayers},
		labelCRIReference: {field: fieldReference, second: true},
		labelCRIDigest:    {field: fieldDigest, second: true},
		labelCRILayers:    {field: fieldLayers, second: true},
	}
	for _, a := range []string{
		AnnotationTOCDigest, AnnotationUncompressedSize, AnnotationPrefetch,
		AnnotationZstdChecksum, AnnotationZstdPosition,
		AnnotationZstdChecksumLegacy, AnnotationZstdPositionLegacy,
	} {
		m[a] = entry{field: fieldAnnotation, annotation: a}
		m[labelAnnotation+a] = entry{field: fieldAnnotation, annotation: a, second: true}
	}
	return m
}()

// KnownAnnotations is the part of a layer descriptor's annotations that a
// [Source] carries; nil when there is none. A key with an empty value is absent.
func KnownAnnotations(annotations map[string]string) map[string]string {
	var out map[string]string
	for k, v := range annotations {
		if !isAnnotation(k) || v == "" {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out
}

// TOCDigest is the digest of a layer's TOC among its descriptor's annotations, ""
// when they name none. Of several, it is the one that the layer is verified by:
// zstd:chunked's, then eStargz's.
func TOCDigest(annotations map[string]string) string {
	for _, k := range []string{AnnotationZstdChecksumLegacy, AnnotationZstdChecksum, AnnotationTOCDigest} {
		if v := annotations[k]; v != "" {
			return v
		}
	}
	return ""
}

// isAnnotation says whether key is, by its own name, an annotation that labels carry.
func isAnnotation(key string) bool {
	e, ok := known[key]
	return ok && e.field == fieldAnnotation && e.annotation == key
}

// splitLabel parts a key into the label that it means and BuildKit's temporary
// suffix ("" for a plain key). ok is false for labels that no source is made of.
func splitLabel(key string) (label, suffix string, ok bool) {
	if _, ok := known[key]; ok {
		return key, "", true
	}
	i := strings.LastIndexByte(key, '.')
	if i < 0 || i == len(key)-1 {
		return "", "", false
	}
	_, ok = known[key[:i]]
	return key[:i], key[i+1:], ok
}

// isTemporary reports whether key is one that BuildKit adds to a snapshot for
// the time of one call: a suffixed one, or a session's.
func isTemporary(key string) bool {
	_, suffix, ok := splitLabel(key)
	return ok && suffix != "" || isSession(key)
}

// isSession reports whether key is one under which BuildKit names a session.
func isSession(key string) bool {
	rest, ok := strings.CutPrefix(key, labelSession+".")
	n, _, _ := strings.Cut(rest, ".")
	_, err := strconv.ParseUint(n, 10, 31)
	return ok && err == nil
}

// isRemote reports whether the labels are a committed remote snapshot's.
func isRemote(labels map[string]string) bool {
	_, ok := labels[LabelRemote]
	return ok
}

// group collects the labels that belong together: the plain ones, or those that
// one call of BuildKit added with its suffix.
type group struct {
	values      [fieldAnnotation]string
	second      [fieldAnnotation]string
	annotations map[string]string
}

// value is the field's, the stargz spelling first.
func (g *group) value(f field) string {
	if g.values[f] != "" {
		return g.values[f]
	}
	return g.second[f]
}

func (g *group) describesLayer() bool {
	return g.value(fieldReference) != "" || g.value(fieldDigest) != ""
}

// add notes one label. Later spellings never replace the first choice.
func (g *group) add(label, value string) {
	k := known[label]
	switch {
	case k.field == fieldAnnotation:
		if _, taken := g.annotations[k.annotation]; taken && k.second {
			return
		}
		if g.annotations == nil {
			g.annotations = map[string]string{}
		}
		g.annotations[k.annotation] = value
	case k.second:
		g.second[k.field] = value
	default:
		g.values[k.field] = value
	}
}

// source makes a Source of the group alone.
func (g *group) source() (Source, error) {
	ref, dgst := g.value(fieldReference), digest.Digest(g.value(fieldDigest))
	if ref == "" {
		return Source{}, fmt.Errorf("labels of remote layer %s name no image reference", dgst)
	}
	if err := checkReference(ref); err != nil {
		return Source{}, fmt.Errorf("labels of remote layer %s: image reference %q: %w", dgst, ref, err)
	}
	if dgst == "" {
		return Source{}, fmt.Errorf("labels of a remote layer of %s name no layer digest", ref)
	}
	if err := dgst.Validate(); err != nil {
		return Source{}, fmt.Errorf("labels of a remote layer of %s: layer digest %q: %w", ref, dgst, err)
	}
	src := Source{Reference: ref, Digest: dgst, Annotations: g.annotations}
	for s := range strings.SplitSeq(g.value(fieldLayers), ",") {
		// The list is a hint, and may be cut short: what is no digest is left out.
		if d, err := digest.Parse(s); err == nil {
			src.Neighbours = append(src.Neighbours, d)
		}
	}
	return src, nil
}

// checkReference makes sure that ref names a host and a repository.
func checkReference(ref string) error {
	spec, err := reference.Parse(ref)
	if err != nil {
		return err
	}
	if host, repository, _ := strings.Cut(spec.Locator, "/"); host == "" || host[0] == ':' || repository == "" {
		return reference.ErrInvalid
	}
	return nil
}

// groups sorts labels by suffix, the plain ones first. Labels with an empty
// value are absent: that is how BuildKit removes its temporary ones, and what it
// writes for an annotation that a layer has not.
func groups(labels map[string]string) []*group {
	bySuffix := map[string]*group{}
	for key, value := range labels {
		label, suffix, ok := splitLabel(key)
		if !ok || value == "" {
			continue
		}
		g := bySuffix[suffix]
		if g == nil {
			g = &group{}
			bySuffix[suffix] = g
		}
		g.add(label, value)
	}
	sorted := make([]*group, 0, len(bySuffix))
	for _, suffix := range slices.Sorted(maps.Keys(bySuffix)) {
		sorted = append(sorted, bySuffix[suffix])
	}
	return sorted
}

// ParseLabels reads the labels of a snapshot: plain ones, containerd's cri.*
// spelling of them, and BuildKit's temporary ones (with a unique suffix). Plain
// labels win; without them, the temporary ones with the lowest suffix do. The
// sessions that BuildKit names beside them are nothing of a source ([Lazy.Hold]
// is for sessions). ok is false when the labels do not describe a remote layer; an
// error says that they try to and are wrong, and ok is false then too.
func ParseLabels(labels map[string]string) (src Source, ok bool, err error) {
	all := groups(labels)
	i := slices.IndexFunc(all, (*group).describesLayer)
	if i < 0 {
		return Source{}, false, nil
	}
	src, err = all[i].source()
	return src, err == nil, err
}

// Labels is the inverse of [ParseLabels]: plain labels that describe s, in the
// spelling that stock BuildKit and stargz-snapshotter read. Annotations that
// containerd would not hand on, zstd:chunked's, get names that it does; annotations
// that [ParseLabels] doesn't know are left out, and neighbours that the size limit
// of a label has no room for.
func (s Source) Labels() map[string]string {
	m := map[string]string{labelReference: s.Reference, labelDigest: s.Digest.String()}
	var list strings.Builder
	for _, d := range s.Neighbours {
		sep := ","
		if list.Len() == 0 {
			sep = ""
		}
		if labels.Validate(labelLayers, list.String()+sep+d.String()) != nil {
			break
		}
		list.WriteString(sep + d.String())
	}
	if list.Len() > 0 {
		m[labelLayers] = list.String()
	}
	for k, v := range s.Annotations {
		if !isAnnotation(k) || v == "" {
			continue
		}
		if !strings.HasPrefix(k, inherited) {
			k = labelAnnotation + k
		}
		m[k] = v
	}
	return m
}

// committedLabels are what a committed remote snapshot keeps: the caller's labels
// without the temporary ones, plain labels of its source, the mark.
func committedLabels(given map[string]string, src Source) map[string]string {
	m := src.Labels()
	for k, v := range given {
		if v != "" && !isTemporary(k) {
			m[k] = v
		}
	}
	m[LabelRemote] = remoteValue
	return m
}
