package worker

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

// vertex is an operation with those below it.
type vertex struct {
	solver.Vertex
	op    any
	below []vertex
}

func (v vertex) Sys() any { return v.op }

func (v vertex) Inputs() (out []solver.Edge) {
	for _, b := range v.below {
		out = append(out, solver.Edge{Vertex: b})
	}
	return out
}

func TestImageBelow(t *testing.T) {
	source := func(id string) vertex {
		return vertex{op: &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: id}}}}
	}
	files := func(input int64, below ...vertex) vertex {
		f := &pb.FileOp{Actions: []*pb.FileAction{{Input: input, SecondaryInput: 1}, {Input: 2}}}
		return vertex{op: &pb.Op{Op: &pb.Op_File{File: f}}, below: below}
	}
	image, local := source("docker-image://example.com/a:v1@sha256:1"), source("local://context")
	run := vertex{op: &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{}}}, below: []vertex{image}}
	deep := image
	for range maxBelow {
		deep = files(0, deep, local)
	}
	root := []*pb.Mount{{Dest: "/cache", Input: 1}, {Dest: pb.RootMount}}
	for name, tc := range map[string]struct {
		mounts []*pb.Mount
		below  []vertex
		want   string
	}{
		"image":            {root, []vertex{image}, "example.com/a:v1@sha256:1"},
		"copies":           {root, []vertex{files(0, files(0, image, local), local)}, "example.com/a:v1@sha256:1"},
		"second input":     {[]*pb.Mount{{Dest: pb.RootMount, Input: 1}}, []vertex{local, image}, "example.com/a:v1@sha256:1"},
		"copy into base 1": {root, []vertex{files(1, local, image)}, "example.com/a:v1@sha256:1"},
		"another step":     {root, []vertex{run}, ""},
		"local":            {root, []vertex{local}, ""},
		"scratch":          {root, []vertex{files(-1, local)}, ""},
		"layout":           {root, []vertex{source("oci-layout://x@sha256:1")}, ""},
		"no root":          {root[:1], []vertex{image, image}, ""},
		"no input":         {root, nil, ""},
		"empty root":       {[]*pb.Mount{{Dest: pb.RootMount, Input: -1}}, []vertex{image}, ""},
		"unknown":          {root, []vertex{{op: "?"}}, ""},
		"nothing":          {root, []vertex{{}}, ""},
		"too deep":         {root, []vertex{deep}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.want, imageBelow(vertex{below: tc.below}, &pb.ExecOp{Mounts: tc.mounts}))
		})
	}
}

// A step that was announced reads ahead from when its image can be read, and the process that
// runs it goes on with it.
func TestAnnouncedStep(t *testing.T) {
	g := newGuarded(t)
	alice, _ := g.client("secret")
	defer g.Hold(g.src, of(alice))()
	all := &announcements{fs: g.FS}
	meta := func(args ...string) *pb.Meta { return &pb.Meta{Args: args, Cwd: "/"} }
	id := func(m *pb.Meta) digest.Digest { return profile.StepDigest(m.Args, m.Cwd) }
	first, other := all.add(g.src.Reference, meta("/a")), all.add(g.src.Reference+"2", meta("/a"))
	emulated, ended := all.add(g.src.Reference, meta("/a", "-x")), all.add(g.src.Reference, meta("/b"))
	require.Nil(t, first.take(id(first.meta), func() {}), "no layer can be read yet")
	require.Nil(t, (*announced)(nil).take("", nil))

	require.NoError(t, g.Resolve(t.Context(), g.src)[0])
	again := all.add(g.src.Reference, meta("/a"))
	all.resolved([]remotesnapshot.Source{g.src})
	require.Nil(t, other.step, "on another image")
	require.Nil(t, first.step, "its process runs")
	require.Eventually(t, func() bool {
		for _, r := range g.reg.Blobs() {
			if r.Range != "" && r.Range[:7] != "bytes=-" {
				return true
			}
		}
		return false
	}, 10*time.Second, time.Millisecond, "/a is asked for, and nobody has opened the layer")

	require.Nil(t, emulated.take(id(meta("/qemu", "/a", "-x")), func() {}), "it is another step")
	require.Nil(t, emulated.step)
	killed := 0
	again.broken()
	step := again.take(id(again.meta), func() { killed++ })
	require.NotNil(t, step)
	require.Zero(t, killed, "what failed before was not asked for by it")
	again.broken()
	require.Equal(t, 1, killed)
	require.Nil(t, again.take(id(again.meta), func() {}), "only once")
	step.End(true)
	require.NotNil(t, ended.step)
	require.Nil(t, ended.take("", nil), "no process comes")
	require.Nil(t, ended.step)
	all.resolved([]remotesnapshot.Source{g.src})
	require.Len(t, all.steps, 1, "that on another image")
}

func TestAnnouncementsHaveABound(t *testing.T) {
	all := &announcements{}
	meta := func(arg string) *pb.Meta { return &pb.Meta{Args: []string{arg}} }
	first := all.add("a", meta("x"))
	for i := range maxAnnounced {
		all.add("b", meta(strings.Repeat("x", i)))
	}
	require.Len(t, all.steps, maxAnnounced)
	require.NotContains(t, all.steps, first)
	same := all.add("b", meta("xx"))
	require.Len(t, all.steps, maxAnnounced, "in the place of another one")
	require.Same(t, same, all.steps[maxAnnounced-1])
	for _, a := range all.steps {
		a.at = a.at.Add(-2 * announcedAge)
	}
	all.resolved([]remotesnapshot.Source{{Reference: "b"}}) // begins none, for it has no file system
	all.add("c", meta("x"))
	require.Len(t, all.steps, 1, "the others are old")
	require.Nil(t, all.add("d", meta(strings.Repeat("x", maxAnnouncedSize+1))))
	require.Nil(t, all.add("d", &pb.Meta{Env: []string{strings.Repeat("x", maxAnnouncedSize+1)}}))
}
