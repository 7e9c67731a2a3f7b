package prune

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// TestSimulation runs random prunes on random managers, in which builds go on
// meanwhile, and holds every step to the rules, which are written here once more
// and plainly.
func TestSimulation(t *testing.T) {
	for seed := range uint64(500) {
		s := newSim(t, seed)
		if !t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { s.T = t; s.prune() }) {
			return
		}
	}
}

// sim is a manager of random records, and one prune of it.
type sim struct {
	*testing.T
	*rand.Rand
	view    View
	made    int
	images  map[string]bool // shared from outside
	info    client.PruneInfo
	free    int64
	atFirst int64 // bytes used when the prune began
}

func newSim(t *testing.T, seed uint64) *sim {
	s := &sim{T: t, Rand: rand.New(rand.NewPCG(seed, 0)), images: map[string]bool{}}
	for range s.IntN(40) {
		s.make()
	}
	s.info.All = s.chance(3)
	if s.chance(3) {
		s.info.Filter = []string{"type==exec.cachemount", "private,immutable"}
	}
	if s.chance(3) {
		s.info.KeepDuration = time.Duration(1+s.IntN(9)) * time.Hour
	}
	for _, limit := range []*int64{&s.info.MaxUsedSpace, &s.info.MinFreeSpace, &s.info.ReservedSpace} {
		if s.chance(2) {
			*limit = s.Int64N(300)
		}
	}
	s.free = s.Int64N(300)
	return s
}

// chance is true once in n times.
func (s *sim) chance(n int) bool { return s.IntN(n) == 0 }

// make adds a record, or twins, on up to three others.
func (s *sim) make() {
	id := fmt.Sprint("r", s.made)
	s.made++
	r := rec(id, sized(s.Int64N(20)), times(s.IntN(4)), ago(time.Duration(s.IntN(10))*time.Hour))
	for range s.IntN(4) {
		if p := s.any(); p != nil && !p.Mutable && !p.Removing {
			r.Parents = append(r.Parents, p.ID)
		}
	}
	r.Users = max(0, s.IntN(6)-4)
	if s.chance(5) {
		neverUsed(&r)
	}
	if s.chance(8) {
		r.Type = []client.UsageRecordType{
			client.UsageRecordTypeInternal, client.UsageRecordTypeFrontend,
			client.UsageRecordTypeCacheMount, client.UsageRecordTypeRegular,
		}[s.IntN(4)]
	}
	s.images[id] = s.chance(10)
	switch s.IntN(6) {
	case 0:
		r.Mutable = true
	case 1:
		twin := r
		twin.ID, twin.Mutable, twin.Users = id+"m", true, 0
		if s.chance(2) {
			twin.Twin = r.ID
		} else {
			r.Twin = twin.ID
		}
		s.view = append(s.view, twin)
	case 2:
		r.Removing = s.chance(4)
	}
	s.view = append(s.view, r)
}

// any returns one of the records, or nil if there are none.
func (s *sim) any() *Record {
	if len(s.view) == 0 {
		return nil
	}
	return &s.view[s.IntN(len(s.view))]
}

// work is what builds do between two batches.
func (s *sim) work() {
	if s.chance(4) && s.made < 60 {
		s.make()
	}
	if r := s.any(); r != nil && r.Twin == "" && s.chance(4) {
		r.Users = 1 - min(r.Users, 1)
	}
}

func (s *sim) get(id string) *Record {
	for i := range s.view {
		if s.view[i].ID == id {
			return &s.view[i]
		}
	}
	return nil
}

// twin returns the other one of twins, or nil.
func (s *sim) twin(r *Record) *Record {
	for i := range s.view {
		if t := &s.view[i]; t.Twin == r.ID || r.Twin == t.ID {
			return t
		}
	}
	return nil
}

// children returns the records that stand on one.
func (s *sim) children(r *Record) (cs []*Record) {
	for i := range s.view {
		if slices.Contains(s.view[i].Parents, r.ID) {
			cs = append(cs, &s.view[i])
		}
	}
	return cs
}

func (s *sim) held(r *Record) bool { return r.Users > 0 || len(s.children(r)) > 0 }

// hidden reports whether a record is not listed.
func (s *sim) hidden(r *Record) bool {
	t := s.twin(r)
	switch {
	case r.Removing:
		return true
	case t == nil:
		return false
	case r.Mutable:
		return s.held(t)
	}
	return !s.held(r)
}

// exists is the SharedFunc. An image is known by its blobs, a mutable record has none.
func (s *sim) exists(id string, _ []digest.Digest) bool { return s.images[id] }

// isShared looks for an image on top of a record.
func (s *sim) isShared(r *Record) bool {
	t := s.twin(r)
	for _, x := range []*Record{r, t} {
		if x == nil {
			continue
		}
		if !s.hidden(x) && s.images[x.ID] || slices.ContainsFunc(s.children(x), s.isShared) {
			return true
		}
	}
	return false
}

// used adds up what counts.
func (s *sim) used() (total int64) {
	for i := range s.view {
		if r := &s.view[i]; !s.hidden(r) && !s.isShared(r) && (!r.Mutable || r.Users == 0) {
			total += r.Size
		}
	}
	return total
}

func (s *sim) limited() bool {
	return s.info.MaxUsedSpace != 0 || s.info.MinFreeSpace != 0 || s.info.ReservedSpace != 0
}

// wants reports whether the policy wants less to be used than now.
func (s *sim) wants() bool {
	used, lacking := s.used(), s.info.MinFreeSpace-s.free
	most, least := s.info.MaxUsedSpace, s.info.MinFreeSpace
	switch {
	case !s.limited():
		return true
	case used < s.info.ReservedSpace:
		return false
	case most == 0 && least == 0:
		return true
	}
	return most != 0 && used >= most || least != 0 && lacking > 0 && used >= s.atFirst-lacking
}

// mayGo reports whether the policy lets a listed record go.
func (s *sim) mayGo(r *Record) bool {
	t := s.twin(r)
	switch {
	case s.hidden(r), s.held(r), t != nil && s.held(t):
		return false
	case !s.info.All && (s.isShared(r) || r.Type == client.UsageRecordTypeInternal || r.Type == client.UsageRecordTypeFrontend):
		return false
	case s.info.KeepDuration != 0 && r.LastUsedAt != nil && now.Sub(*r.LastUsedAt) < s.info.KeepDuration:
		return false
	case len(s.info.Filter) == 0:
		return true
	}
	return r.Type == client.UsageRecordTypeCacheMount || !s.isShared(r) && !r.Mutable
}

// prune runs a prune to its end.
func (s *sim) prune() {
	p, err := Parse(s.info)
	require.NoError(s, err)
	s.atFirst = s.used()
	require.Equal(s, s.atFirst, s.usedAsReported())
	run := p.Begin(s.view, s.free, s.exists)
	for steps := 0; ; steps++ {
		require.LessOrEqual(s, steps, 2*60, "it ends")
		batch := run.Next(s.view, now)
		s.Shuffle(len(s.view), func(i, j int) { s.view[i], s.view[j] = s.view[j], s.view[i] })
		require.Equal(s, batch, run.Next(s.view, now), "the order of the view does not matter")
		s.check(batch)
		if len(batch) == 0 {
			return
		}
		for _, info := range batch {
			s.remove(info.ID)
		}
		s.work()
	}
}

// check holds a batch to the rules.
func (s *sim) check(batch []client.UsageInfo) {
	if len(batch) == 0 {
		for i := range s.view {
			require.False(s, s.wants() && s.mayGo(&s.view[i]), "%s could have gone", s.view[i].ID)
		}
		return
	}
	require.True(s, s.wants(), "%v go though the goal is reached", ids(batch))
	require.LessOrEqual(s, len(batch), maxBatch)
	if s.limited() && s.atFirst > s.info.MinFreeSpace-s.free {
		require.Len(s, batch, 1)
	}
	for _, info := range batch {
		r := s.get(info.ID)
		require.NotNil(s, r)
		require.True(s, s.mayGo(r), "%s must not go", r.ID)
		require.Equal(s, r.Size, info.Size)
		require.False(s, info.InUse)
	}
}

// remove removes a record and its twin.
func (s *sim) remove(id string) {
	r := s.get(id)
	gone := []string{id}
	if t := s.twin(r); t != nil {
		gone = append(gone, t.ID)
	}
	s.view = slices.DeleteFunc(s.view, func(r Record) bool { return slices.Contains(gone, r.ID) })
}

// usedAsReported adds up a usage report, as people do.
func (s *sim) usedAsReported() (total int64) {
	infos, err := Usage(s.view, client.DiskUsageInfo{Filter: []string{"private"}}, s.exists, now)
	require.NoError(s, err)
	for _, u := range infos {
		total += u.Size
	}
	return total
}
