package prune

import (
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func TestUsageMarks(t *testing.T) {
	for _, tc := range []struct {
		name   string
		view   View
		shared []string
		listed []string
		inUse  []string
		isOf   []string // shared
	}{
		{
			name: "nothing is kept",
		}, {
			name:   "a chain that nobody uses",
			view:   View{rec("base"), rec("step", on("base"))},
			listed: []string{"base", "step"},
		}, {
			name:   "a user of a step uses what it stands on, and not what stands on it",
			view:   View{rec("base"), rec("step", on("base"), busy), rec("next", on("step"))},
			listed: []string{"base", "next", "step"},
			inUse:  []string{"base", "step"},
		}, {
			name:   "an unused child beside a used one",
			view:   View{rec("base"), rec("a", on("base")), rec("b", on("base"), busy)},
			listed: []string{"a", "b", "base"},
			inUse:  []string{"b", "base"},
		}, {
			name:   "a merge uses all its parents",
			view:   View{rec("a"), rec("b"), rec("c"), rec("merge", on("a", "b", "c", "a"), busy)},
			listed: []string{"a", "b", "c", "merge"},
			inUse:  []string{"a", "b", "c", "merge"},
		}, {
			name:   "an unused merge uses none",
			view:   View{rec("a"), rec("b"), rec("merge", on("a", "b", "a"))},
			listed: []string{"a", "b", "merge"},
		}, {
			name:   "a diff of a record with itself",
			view:   View{rec("a"), rec("diff", on("a", "a"))},
			listed: []string{"a", "diff"},
		}, {
			name:   "a diff of a record with itself, in use",
			view:   View{rec("a"), rec("diff", on("a", "a"), busy)},
			listed: []string{"a", "diff"},
			inUse:  []string{"a", "diff"},
		}, {
			name:   "unused twins are listed under the mutable one's name and don't use their parent",
			view:   View{rec("base"), rec("mut", mutable, on("base"), twinOf("imm")), rec("imm", on("base"))},
			listed: []string{"base", "mut"},
		}, {
			name:   "used twins are listed under the immutable one's name",
			view:   View{rec("base"), rec("mut", mutable, on("base")), rec("imm", on("base"), busy, twinOf("mut"))},
			listed: []string{"base", "imm"},
			inUse:  []string{"base", "imm"},
		}, {
			name: "so are twins with a child, of which they are not in use",
			view: View{
				rec("base"), rec("mut", mutable, on("base"), twinOf("imm")), rec("imm", on("base"), twinOf("mut")),
				rec("step", on("imm")),
			},
			listed: []string{"base", "imm", "step"},
		}, {
			name:   "a twin that has left is no twin",
			view:   View{rec("imm", twinOf("mut"))},
			listed: []string{"imm"},
		}, {
			name:   "two immutable records are no twins",
			view:   View{rec("a", twinOf("b")), rec("b", twinOf("a"))},
			listed: []string{"a", "b"},
		}, {
			name:   "a mutable twin that is being removed leaves the immutable one alone",
			view:   View{rec("imm"), rec("mut", mutable, twinOf("imm"), removing)},
			listed: []string{"imm"},
		}, {
			name:   "what is being removed is not listed",
			view:   View{rec("base"), rec("step", on("base"), removing)},
			listed: []string{"base"},
		}, {
			name:   "a shared record shares all that it stands on",
			view:   View{rec("a"), rec("b"), rec("merge", on("a", "b")), rec("image", on("merge")), rec("step", on("image"))},
			shared: []string{"image"},
			listed: []string{"a", "b", "image", "merge", "step"},
			isOf:   []string{"a", "b", "image", "merge"},
		}, {
			name:   "a parent that is unknown is no matter",
			view:   View{rec("step", on("gone"), busy)},
			listed: []string{"step"},
			inUse:  []string{"step"},
		}, {
			name:   "a circle, which no manager has, ends nevertheless",
			view:   View{rec("a", on("b", "a"), busy), rec("b", on("a"))},
			shared: []string{"b"},
			listed: []string{"a", "b"},
			inUse:  []string{"a", "b"},
			isOf:   []string{"a", "b"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 { // in either order
				infos, err := Usage(tc.view, client.DiskUsageInfo{}, sharing(tc.shared...), now)
				require.NoError(t, err)
				require.Equal(t, tc.listed, pick(infos, func(*client.UsageInfo) bool { return true }))
				require.Equal(t, tc.inUse, pick(infos, func(u *client.UsageInfo) bool { return u.InUse }), "in use")
				require.Equal(t, tc.isOf, pick(infos, func(u *client.UsageInfo) bool { return u.Shared }), "shared")
				slices.Reverse(tc.view)
			}
		})
	}
}

// pick returns the IDs of the infos that answer a question with yes.
func pick(infos []*client.UsageInfo, question func(*client.UsageInfo) bool) (ids []string) {
	for _, u := range infos {
		if question(u) {
			ids = append(ids, u.ID)
		}
	}
	return ids
}

func TestUsageFilters(t *testing.T) {
	view := View{
		rec("base", described("pulled from docker.io")),
		rec("step", on("base"), busy, described("mount / from exec")),
		rec("diff", on("base", "step"), ago(3*day)),
		rec("cache", mutable, cacheMount, ago(2*day)),
		rec("new", mutable, neverUsed),
	}
	everything := []string{"base", "cache", "diff", "new", "step"}
	for _, tc := range []struct {
		filter []string
		age    time.Duration
		want   []string
	}{
		{want: everything},
		{filter: []string{""}, want: everything},
		{filter: []string{"id==step"}, want: []string{"step"}},
		{filter: []string{"id~=^.{4}$"}, want: []string{"base", "diff", "step"}},
		{filter: []string{"id!=step"}, want: []string{"base", "cache", "diff", "new"}},
		{filter: []string{"parents==base;step"}, want: []string{"diff"}},
		{filter: []string{"parents~=base"}, want: []string{"diff", "step"}},
		{filter: []string{"parents"}, want: []string{"diff", "step"}},
		{filter: []string{"description~=docker"}, want: []string{"base"}},
		{filter: []string{"inuse"}, want: []string{"base", "step"}},
		{filter: []string{"mutable"}, want: []string{"cache", "new"}},
		{filter: []string{"immutable"}, want: []string{"base", "diff", "step"}},
		{filter: []string{"type==exec.cachemount"}, want: []string{"cache"}},
		{filter: []string{"type==regular"}, want: []string{"base", "diff", "new", "step"}},
		{filter: []string{"shared"}, want: []string{"base", "step"}},
		{filter: []string{"private"}, want: []string{"cache", "diff", "new"}},
		{filter: []string{"mutable,type==regular"}, want: []string{"new"}},
		{filter: []string{"id==new", "inuse"}, want: []string{"base", "new", "step"}},
		{filter: []string{"colour"}},
		{filter: []string{"id~=("}},
		{age: 2*day + 1, want: []string{"diff", "new"}},
		{age: 2 * day, want: []string{"cache", "diff", "new"}},
		{age: 2 * day, filter: []string{"mutable"}, want: []string{"cache", "new"}},
		{age: -day, want: everything},
	} {
		infos, err := Usage(view, client.DiskUsageInfo{Filter: tc.filter, AgeLimit: tc.age}, sharing("step"), now)
		require.NoError(t, err)
		require.Equal(t, tc.want, pick(infos, func(*client.UsageInfo) bool { return true }), "%q, %v", tc.filter, tc.age)
	}
}

func TestBadFilterIsNamed(t *testing.T) {
	for _, bad := range []string{"id==", "==x", "id=x", "id,", ",", `id=="`} {
		_, err := Usage(nil, client.DiskUsageInfo{Filter: []string{"id==a", bad}}, nil, now)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorContains(t, err, "disk usage: filter ")
		_, err = Parse(client.PruneInfo{Filter: []string{bad, "id==a"}})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, bad)
		require.ErrorContains(t, err, "prune: filter ")
	}
	_, err := Parse(client.PruneInfo{Filter: []string{"id==a", "inuse=yes"}})
	require.ErrorContains(t, err, `"inuse=yes"`)
}

func TestUsageTellsEverything(t *testing.T) {
	used := now.Add(-time.Hour)
	view := View{{
		ID: "step", Parents: []string{"base"}, Users: 2, Size: 5, CreatedAt: now.Add(-day), LastUsedAt: &used,
		UsageCount: 7, Description: "exec", Type: client.UsageRecordTypeFrontend,
		Chain: []digest.Digest{"sha256:a", "sha256:b"},
	}}
	var asked []digest.Digest
	infos, err := Usage(view, client.DiskUsageInfo{}, func(id string, chain []digest.Digest) bool {
		asked = chain
		return id == "step"
	}, now)
	require.NoError(t, err)
	require.Equal(t, []*client.UsageInfo{{
		ID: "step", Parents: []string{"base"}, InUse: true, Size: 5, CreatedAt: now.Add(-day), LastUsedAt: &used,
		UsageCount: 7, Description: "exec", RecordType: client.UsageRecordTypeFrontend, Shared: true,
	}}, infos)
	require.Equal(t, view[0].Chain, asked)

	infos[0].Parents[0] = "changed"
	*infos[0].LastUsedAt = now
	require.Equal(t, "base", view[0].Parents[0], "memory is not shared")
	require.Equal(t, now.Add(-time.Hour), used)
}

func TestSizes(t *testing.T) {
	view := View{
		rec("known", sized(3)),
		rec("unknown", sized(SizeUnknown)),
		rec("changing", mutable, busy, sized(SizeUnknown)),
		rec("written", mutable, busy, sized(100)),
		rec("mut", mutable, sized(SizeUnknown), twinOf("imm")),
		rec("imm", sized(4)),
		rec("mut2", mutable, sized(-7), twinOf("imm2")),
		rec("imm2", sized(-7)),
		rec("gone", removing, sized(SizeUnknown)),
	}
	infos, err := Usage(view, client.DiskUsageInfo{}, nil, now)
	require.NoError(t, err)
	sizes := map[string]int64{}
	for _, u := range infos {
		sizes[u.ID] = u.Size
	}
	require.Equal(t, map[string]int64{
		"known": 3, "unknown": SizeUnknown, "changing": 0, "written": 0, "mut": 4, "mut2": SizeUnknown,
	}, sizes)
	require.Equal(t, []string{"mut2", "unknown"}, Unsized(view))
	require.EqualValues(t, 7, newGraph(view).used(), "what is unknown counts as nothing")
}
