package remotesnapshot

import (
	"maps"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/util/estargz"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	d1 = digest.FromString("1")
	d2 = digest.FromString("2")
	d3 = digest.FromString("3")
)

const suffix = ".k2pb4m0xz5vqj3" // as BuildKit's identity.NewID makes them

func TestParseLabels(t *testing.T) {
	for name, tt := range map[string]struct {
		labels map[string]string
		want   Source
		ok     bool
		err    string
	}{
		"none":           {},
		"of others":      {labels: map[string]string{LabelTarget: "x", LabelRemote: "remote snapshot", "a.b": "c", ".": "", "x.": "y"}},
		"empty values":   {labels: map[string]string{labelReference: "", labelDigest: ""}},
		"sessions alone": {labels: map[string]string{labelSession + ".0" + suffix: "s"}},
		"toc alone":      {labels: map[string]string{AnnotationTOCDigest: d2.String()}},
		"plain": {
			labels: map[string]string{
				labelReference: testRef, labelDigest: d1.String(), labelLayers: d1.String() + "," + d2.String(),
				AnnotationTOCDigest: d3.String(), AnnotationUncompressedSize: "",
			},
			want: Source{
				Reference: testRef, Digest: d1, Neighbours: []digest.Digest{d1, d2},
				Annotations: map[string]string{AnnotationTOCDigest: d3.String()},
			},
			ok: true,
		},
		"empty toc digest": {
			labels: map[string]string{labelReference: testRef, labelDigest: d1.String(), AnnotationTOCDigest: ""},
			want:   Source{Reference: testRef, Digest: d1}, ok: true,
		},
		"temporary only": {
			labels: map[string]string{
				labelReference + suffix: testRef, labelDigest + suffix: d1.String(), labelLayers + suffix: d1.String(),
				AnnotationTOCDigest + suffix: d3.String(),
				labelSession + ".1" + suffix: "b", labelSession + ".0" + suffix: "a",
			},
			want: Source{
				Reference: testRef, Digest: d1, Neighbours: []digest.Digest{d1},
				Annotations: map[string]string{AnnotationTOCDigest: d3.String()},
			},
			ok: true,
		},
		"plain wins": {
			labels: map[string]string{
				labelReference: testRef, labelDigest: d1.String(),
				labelReference + ".y": testRef, labelDigest + ".y": d1.String(),
				labelSession + ".0.y": "y0", labelSession + ".10.y": "y10", labelSession + ".9.y": "y9",
				labelReference + ".z": "other.example/x:1", labelDigest + ".z": d1.String(), labelSession + ".0.z": "z0",
				labelReference + ".a": testRef, labelDigest + ".a": d1.String(), labelSession + ".0.a": "y0",
			},
			want: Source{Reference: testRef, Digest: d1}, ok: true,
		},
		"lowest suffix": {
			labels: map[string]string{
				labelReference + ".b": "b.example/x:1", labelDigest + ".b": d2.String(),
				labelReference + ".a": "a.example/x:1", labelDigest + ".a": d1.String(),
			},
			want: Source{Reference: "a.example/x:1", Digest: d1}, ok: true,
		},
		"cri": {
			labels: map[string]string{
				labelCRIReference: testRef, labelCRIDigest: d1.String(), labelCRILayers: d1.String() + "," + d3.String(),
			},
			want: Source{Reference: testRef, Digest: d1, Neighbours: []digest.Digest{d1, d3}}, ok: true,
		},
		"stargz before cri": {
			labels: map[string]string{
				labelCRIReference: "cri.example/x:1", labelCRIDigest: d2.String(),
				labelReference: testRef, labelDigest: d1.String(),
			},
			want: Source{Reference: testRef, Digest: d1}, ok: true,
		},
		"zstd:chunked, both families, direct and carried": {
			labels: map[string]string{
				labelReference: testRef, labelDigest: d1.String(),
				AnnotationZstdChecksumLegacy:                        d2.String(),
				AnnotationZstdPositionLegacy:                        "1:2:3:1",
				labelAnnotation + AnnotationZstdChecksum:            d3.String(),
				labelAnnotation + AnnotationZstdPosition + suffix:   "9:9:9:9",
				labelAnnotation + AnnotationZstdPositionLegacy:      "carried loses",
				labelAnnotation + "org.example.not-one-that-we-use": "x",
			},
			want: Source{Reference: testRef, Digest: d1, Annotations: map[string]string{
				AnnotationZstdChecksumLegacy: d2.String(), AnnotationZstdPositionLegacy: "1:2:3:1", AnnotationZstdChecksum: d3.String(),
			}},
			ok: true,
		},
		"neighbours that are cut short": {
			labels: map[string]string{labelReference: testRef, labelDigest: d1.String(), labelLayers: d1.String() + ",sha256:12,"},
			want:   Source{Reference: testRef, Digest: d1, Neighbours: []digest.Digest{d1}}, ok: true,
		},
		"no digest":               {labels: map[string]string{labelReference: testRef}, err: "name no layer digest"},
		"no reference":            {labels: map[string]string{labelDigest: d1.String()}, err: "name no image reference"},
		"bad digest":              {labels: map[string]string{labelReference: testRef, labelDigest: "sha256:xyz"}, err: `layer digest "sha256:xyz"`},
		"unknown digest":          {labels: map[string]string{labelReference: testRef, labelDigest: "md9:00"}, err: "layer digest"},
		"path in digest":          {labels: map[string]string{labelReference: testRef, labelDigest: "../../etc"}, err: "layer digest"},
		"reference no repository": {labels: map[string]string{labelReference: "registry.example", labelDigest: d1.String()}, err: `image reference "registry.example"`},
		"reference no host":       {labels: map[string]string{labelReference: ":1", labelDigest: d1.String()}, err: `image reference ":1"`},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok, err := ParseLabels(tt.labels)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if ok != tt.ok {
				t.Fatalf("ok = %v", ok)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

// TestLabelsOfBuildKit feeds what BuildKit's own code makes of a manifest.
func TestLabelsOfBuildKit(t *testing.T) {
	descs := []ocispecs.Descriptor{
		{Digest: d1, Annotations: map[string]string{AnnotationTOCDigest: d3.String()}},
		{Digest: d2},
	}
	got, ok, err := ParseLabels(snapshots.FilterInheritedLabels(estargz.SnapshotLabels(testRef, descs, 0)))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	want := Source{
		Reference: testRef, Digest: d1, Neighbours: []digest.Digest{d1, d2},
		Annotations: map[string]string{AnnotationTOCDigest: d3.String()},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	got, ok, err = ParseLabels(estargz.SnapshotLabels(testRef, descs, 1))
	if err != nil || !ok || got.Annotations != nil {
		t.Fatalf("a layer without annotations: %+v, %v, %v", got, ok, err)
	}
}

// TestSourceLabels checks that labels survive containerd's filter and its limit.
func TestSourceLabels(t *testing.T) {
	src := Source{Reference: testRef, Digest: d1, Annotations: map[string]string{
		AnnotationTOCDigest: d2.String(), AnnotationZstdChecksum: d3.String(),
		AnnotationUncompressedSize: "77", AnnotationPrefetch: "1024",
	}}
	for range 100 {
		src.Neighbours = append(src.Neighbours, d1)
	}
	labels := src.Labels()
	if n := len(labels[labelLayers]) + len(labelLayers); n > 4096 || n < 4000 {
		t.Errorf("the list of layers has %d bytes with its key", n)
	}
	got, ok, err := ParseLabels(snapshots.FilterInheritedLabels(labels))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	src.Neighbours = src.Neighbours[:len(got.Neighbours)]
	if diff := cmp.Diff(src, got); diff != "" {
		t.Fatal(diff)
	}
}

// TestTemporaryLabels lists what stock BuildKit adds to a snapshot for one call.
func TestTemporaryLabels(t *testing.T) {
	for key, want := range map[string]bool{
		labelReference + suffix:                           true,
		labelDigest + suffix:                              true,
		labelLayers + suffix:                              true,
		labelCRIDigest + suffix:                           true,
		AnnotationTOCDigest + suffix:                      true,
		AnnotationZstdChecksum + suffix:                   true,
		labelAnnotation + AnnotationZstdChecksum + suffix: true,
		labelSession + ".0" + suffix:                      true,
		labelSession + ".17" + suffix:                     true,
		labelSession + ".0":                               true,

		labelReference:                           false,
		labelReference + ".":                     false,
		labelCRIDigest:                           false,
		AnnotationTOCDigest:                      false,
		labelAnnotation + AnnotationZstdChecksum: false,
		labelAnnotation + "org.example" + suffix: false,
		labelSession:                             false,
		labelSession + ".":                       false,
		labelSession + suffix:                    false,
		labelSession + ".x" + suffix:             false,
		labelSession + ".4294967296" + suffix:    false,
		labelSession + "s.0" + suffix:            false,
		LabelTarget + suffix:                     false,
		LabelRemote:                              false,
		"x" + suffix:                             false,
		"":                                       false,
	} {
		if got := isTemporary(key); got != want {
			t.Errorf("%q: %v", key, got)
		}
	}
}

func FuzzParseLabels(f *testing.F) {
	f.Add(labelReference, testRef, labelDigest, d1.String(), labelLayers, d1.String()+","+d2.String(), AnnotationTOCDigest, d3.String())
	f.Add(labelReference+suffix, testRef, labelDigest+suffix, d1.String(), labelSession+".0"+suffix, "s", AnnotationTOCDigest+suffix, "")
	f.Add(labelCRIReference, testRef, labelCRIDigest, d1.String(), labelCRILayers, ",", labelAnnotation+AnnotationZstdPosition, "1:2:3:4")
	f.Add(labelSession+".", "", labelSession, "s", labelReference+".", "x", "..", ".")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3, k4, v4 string) {
		labels := map[string]string{k1: v1, k2: v2, k3: v3, k4: v4}
		before := maps.Clone(labels)
		src, ok, err := ParseLabels(labels)
		if !maps.Equal(before, labels) {
			t.Fatal("the labels were changed")
		}
		if err != nil && ok {
			t.Fatal("ok with an error")
		}
		if !ok {
			return
		}
		if src.Reference == "" || src.Digest.Validate() != nil {
			t.Fatalf("source %+v", src)
		}
		again, ok, err := ParseLabels(src.Labels())
		if err != nil || !ok {
			t.Fatalf("labels of %+v: %v, %v", src, ok, err)
		}
		src.Neighbours = src.Neighbours[:min(len(src.Neighbours), len(again.Neighbours))]
		if len(src.Neighbours) == 0 {
			src.Neighbours = again.Neighbours
		}
		if diff := cmp.Diff(src, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestKnownAnnotations(t *testing.T) {
	got := KnownAnnotations(map[string]string{
		AnnotationTOCDigest: d1.String(), AnnotationUncompressedSize: "10", AnnotationPrefetch: "",
		AnnotationZstdChecksum: d1.String(), AnnotationZstdPosition: "1:2:3:1",
		AnnotationZstdChecksumLegacy: d2.String(), AnnotationZstdPositionLegacy: "1:2:3:1",
		labelReference: testRef, labelAnnotation + AnnotationZstdChecksum: d3.String(),
		"org.opencontainers.image.title": "x",
	})
	want := map[string]string{
		AnnotationTOCDigest: d1.String(), AnnotationUncompressedSize: "10",
		AnnotationZstdChecksum: d1.String(), AnnotationZstdPosition: "1:2:3:1",
		AnnotationZstdChecksumLegacy: d2.String(), AnnotationZstdPositionLegacy: "1:2:3:1",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	src := Source{Reference: testRef, Digest: d1, Annotations: got}
	labels := src.Labels()
	for k := range labels {
		if !strings.HasPrefix(k, inherited) {
			t.Errorf("containerd would drop label %s", k)
		}
	}
	back, ok, err := ParseLabels(labels)
	if err != nil || !ok || !maps.Equal(back.Annotations, want) {
		t.Errorf("labels lead to %v, %v, %v", back, ok, err)
	}
	for _, none := range []map[string]string{nil, {"x": "y", AnnotationTOCDigest: ""}} {
		if got := KnownAnnotations(none); got != nil {
			t.Errorf("%v: got %v", none, got)
		}
	}
}
