package prune

import (
	"fmt"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func TestFirstBatch(t *testing.T) {
	chain := View{rec("base"), rec("step", on("base"))}
	for _, tc := range []struct {
		name   string
		view   View
		policy client.PruneInfo
		free   int64
		shared []string
		want   []string
	}{
		{
			name: "nothing there",
		}, {
			name: "a child goes before its parent",
			view: chain,
			want: []string{"step"},
		}, {
			name: "what has a user stays, and what it stands on",
			view: View{rec("base"), rec("step", on("base"), busy)},
		}, {
			name:   "even if everything is to go",
			view:   View{rec("base"), rec("step", on("base"), busy)},
			policy: client.PruneInfo{All: true},
		}, {
			name: "the parents of a merge and of a diff wait for it",
			view: View{rec("a"), rec("b"), rec("merge", on("a", "b")), rec("c"), rec("diff", on("c", "c"))},
			want: []string{"diff", "merge"},
		}, {
			name: "what is being removed holds its parents and is not removed twice",
			view: View{rec("base"), rec("step", on("base"), removing)},
		}, {
			name: "a mutable parent waits too",
			view: View{rec("mut", mutable), rec("step", on("mut"))},
			want: []string{"step"},
		}, {
			name: "twins go together, by the name of the mutable one, before their parent",
			view: View{rec("base"), rec("mut", mutable, on("base"), twinOf("imm")), rec("imm", on("base"))},
			want: []string{"mut"},
		}, {
			name: "a user of the immutable twin keeps both",
			view: View{rec("mut", mutable, twinOf("imm")), rec("imm", busy)},
		}, {
			name: "a user of the mutable twin keeps both",
			view: View{rec("mut", mutable, busy, twinOf("imm")), rec("imm")},
		}, {
			name: "a child of the immutable twin keeps both",
			view: View{rec("mut", mutable, twinOf("imm")), rec("imm"), rec("step", on("imm"))},
			want: []string{"step"},
		}, {
			name: "a twin without its twin goes alone",
			view: View{rec("imm", twinOf("mut"))},
			want: []string{"imm"},
		}, {
			name: "internal, frontend and shared records stay",
			view: View{
				rec("a", internal), rec("b", frontend), rec("c"), rec("d", cacheMount, mutable),
				rec("base"), rec("image", on("base")),
			},
			shared: []string{"image"},
			want:   []string{"c", "d"},
		}, {
			name:   "unless everything is to go",
			view:   View{rec("a", internal), rec("b", frontend), rec("c"), rec("image")},
			policy: client.PruneInfo{All: true},
			shared: []string{"image"},
			want:   []string{"a", "b", "c", "image"},
		}, {
			name:   "a filter",
			view:   View{rec("a"), rec("b", cacheMount), rec("c", on("b"))},
			policy: client.PruneInfo{Filter: []string{"type==exec.cachemount", "id==a", "id==b"}},
			want:   []string{"a"},
		}, {
			name:   "a filter on parents",
			view:   View{rec("a"), rec("b"), rec("c", on("a", "b")), rec("d", on("a"))},
			policy: client.PruneInfo{Filter: []string{"parents~=b"}},
			want:   []string{"c"},
		}, {
			name:   "nothing that is removable is in use",
			view:   chain,
			policy: client.PruneInfo{Filter: []string{"inuse"}},
		}, {
			name:   "a filter on what is shared, when everything is to go",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{All: true, Filter: []string{"private"}},
			shared: []string{"b"},
			want:   []string{"a"},
		}, {
			name:   "a filter does not reach what only All reaches",
			view:   View{rec("a", internal), rec("b")},
			policy: client.PruneInfo{Filter: []string{"type==internal"}},
		}, {
			name:   "records used lately stay; one used exactly then may go, one never used too",
			view:   View{rec("before", ago(day+1)), rec("then", ago(day)), rec("after", ago(day-1)), rec("never", neverUsed)},
			policy: client.PruneInfo{KeepDuration: day, All: true},
			want:   []string{"never", "before", "then"},
		}, {
			name:   "less than the most is used",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MaxUsedSpace: 21},
		}, {
			name:   "just the most is used: one goes, as in BuildKit",
			view:   View{rec("a", ago(time.Hour)), rec("b")},
			policy: client.PruneInfo{MaxUsedSpace: 20},
			want:   []string{"b"},
		}, {
			name:   "more than the most is used: one at a time",
			view:   View{rec("a"), rec("b"), rec("c"), rec("d")},
			policy: client.PruneInfo{MaxUsedSpace: 1},
			want:   []string{"a"},
		}, {
			name:   "what is shared is not counted",
			view:   View{rec("a"), rec("base"), rec("image", on("base"))},
			policy: client.PruneInfo{MaxUsedSpace: 11},
			shared: []string{"image"},
		}, {
			name:   "what is being written is not counted",
			view:   View{rec("a"), rec("b", mutable, busy)},
			policy: client.PruneInfo{MaxUsedSpace: 11},
		}, {
			name:   "twins are counted once",
			view:   View{rec("mut", mutable, twinOf("imm")), rec("imm")},
			policy: client.PruneInfo{MaxUsedSpace: 11},
		}, {
			name:   "a limit does not overrule the time to keep",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MaxUsedSpace: 1, KeepDuration: 2 * day},
		}, {
			name:   "a reserve alone is a limit",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{ReservedSpace: 15},
			want:   []string{"a"},
		}, {
			name:   "the reserve wins over the limit",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MaxUsedSpace: 5, ReservedSpace: 21},
		}, {
			name:   "the reserve wins over the free space",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MinFreeSpace: 100, ReservedSpace: 21},
		}, {
			name:   "enough is free",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MinFreeSpace: 100},
			free:   100,
		}, {
			name:   "enough is free, and there is a reserve that is used up",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MinFreeSpace: 100, ReservedSpace: 1},
			free:   100,
		}, {
			name:   "enough is free and nothing counts",
			view:   View{rec("a", sized(0))},
			policy: client.PruneInfo{MinFreeSpace: 100},
			free:   200,
		}, {
			name:   "enough is free, but too much is used",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MinFreeSpace: 100, MaxUsedSpace: 15},
			free:   100,
			want:   []string{"a"},
		}, {
			name:   "not enough is free",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MinFreeSpace: 100, MaxUsedSpace: 1000},
			free:   99,
			want:   []string{"a"},
		}, {
			name:   "more is lacking than is used: all may go, without counting",
			view:   View{rec("a"), rec("b")},
			policy: client.PruneInfo{MinFreeSpace: 100},
			free:   10,
			want:   []string{"a", "b"},
		}, {
			name:   "an unknown size counts as nothing",
			view:   View{rec("a", sized(SizeUnknown)), rec("b")},
			policy: client.PruneInfo{MaxUsedSpace: 11},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Parse(tc.policy)
			require.NoError(t, err)
			batch := p.Begin(tc.view, tc.free, sharing(tc.shared...)).Next(tc.view, now)
			require.Equal(t, tc.want, ids(batch))
		})
	}
}

func TestBatchIsBounded(t *testing.T) {
	var view View
	for i := range 25 {
		view = append(view, rec(fmt.Sprintf("%02d", i), ago(time.Duration(i)*time.Hour)))
	}
	p, err := Parse(client.PruneInfo{})
	require.NoError(t, err)
	run := p.Begin(nil, 0, nil)
	require.Equal(t, []string{"24", "23", "22", "21", "20", "19", "18", "17", "16", "15"}, ids(run.Next(view, now)))
}

func TestBatchTellsEverything(t *testing.T) {
	used := now.Add(-time.Hour)
	view := View{rec("base"), rec("other", busy), {
		ID: "step", Parents: []string{"base"}, Size: 5, CreatedAt: now.Add(-day), LastUsedAt: &used,
		UsageCount: 7, Description: "exec",
	}}
	p, err := Parse(client.PruneInfo{All: true, MaxUsedSpace: 1})
	require.NoError(t, err)
	require.Equal(t, []client.UsageInfo{{
		ID: "step", Parents: []string{"base"}, Size: 5, CreatedAt: now.Add(-day), LastUsedAt: &used,
		UsageCount: 7, Description: "exec", RecordType: client.UsageRecordTypeRegular, Shared: true,
	}}, p.Begin(view, 0, sharing("step")).Next(view, now))
}

func TestGoalStaysWhileTheDiskDoesNot(t *testing.T) {
	view := View{rec("a"), rec("b"), rec("c"), rec("d")}
	p, err := Parse(client.PruneInfo{MinFreeSpace: 115})
	require.NoError(t, err)
	run := p.Begin(view, 100, nil)
	require.Equal(t, []string{"a"}, ids(run.Next(view, now)))
	require.Equal(t, []string{"b"}, ids(run.Next(view[1:], now)))
	require.Empty(t, run.Next(view[2:], now), "20 bytes are on their way")

	view = append(view[2:], rec("e"), rec("f"))
	require.Equal(t, []string{"c"}, ids(run.Next(view, now)), "what was made meanwhile counts")
}

func TestSharedRecordFreesNothing(t *testing.T) {
	view := View{rec("a", ago(time.Hour)), rec("b", ago(time.Minute)), rec("image"), rec("sure", busy, sized(5))}
	p, err := Parse(client.PruneInfo{All: true, MaxUsedSpace: 20})
	require.NoError(t, err)
	run := p.Begin(view, 0, sharing("image"))
	require.Equal(t, []string{"image"}, ids(run.Next(view, now)))
	view = append(view[:2:2], view[3])
	require.Equal(t, []string{"a"}, ids(run.Next(view, now)))
	require.Empty(t, run.Next(view[1:], now))
}

func TestNeeds(t *testing.T) {
	for _, tc := range []struct {
		info          client.PruneInfo
		space, shared bool
	}{
		{info: client.PruneInfo{}, shared: true},
		{info: client.PruneInfo{All: true}},
		{info: client.PruneInfo{All: true, KeepDuration: day}},
		{info: client.PruneInfo{All: true, Filter: []string{"id==a"}}, shared: true},
		{info: client.PruneInfo{All: true, MaxUsedSpace: 1}, space: true, shared: true},
		{info: client.PruneInfo{All: true, MinFreeSpace: 1}, space: true, shared: true},
		{info: client.PruneInfo{All: true, ReservedSpace: 1}, space: true, shared: true},
	} {
		p, err := Parse(tc.info)
		require.NoError(t, err)
		require.Equal(t, tc.space, p.NeedsSpace(), "%+v", tc.info)
		require.Equal(t, tc.shared, p.NeedsShared(), "%+v", tc.info)
		if !tc.shared {
			nobody := func(string, []digest.Digest) bool { panic("asked") }
			require.Len(t, p.Begin(View{rec("a")}, 0, nobody).Next(View{rec("a", ago(2*day))}, now), 1)
		}
	}
}
