package prune

import (
	"cmp"
	"slices"
	"time"

	"github.com/moby/buildkit/client"
)

// sortCandidates puts the least useful records first. As in BuildKit, usefulness
// is the sum of two ranks, each divided by the highest one: how recent the last
// use is among the candidates, and how high the usage count. What was never used
// ranks lowest. Ties go to the older use, then to the older record, then to the
// lower ID.
func sortCandidates(cs []*client.UsageInfo) {
	score := scores(cs)
	slices.SortFunc(cs, func(a, b *client.UsageInfo) int {
		return cmp.Or(
			cmp.Compare(score[a.ID], score[b.ID]),
			lastUse(a).Compare(lastUse(b)),
			a.CreatedAt.Compare(b.CreatedAt),
			cmp.Compare(a.ID, b.ID),
		)
	})
}

// scores returns the usefulness of candidates by ID, scaled to whole numbers.
func scores(cs []*client.UsageInfo) map[string]int64 {
	recent, highestRecent := ranks(cs, lastUse, time.Time.Compare)
	often, highestOften := ranks(cs, usageCount, cmp.Compare[int])
	score := make(map[string]int64, len(cs))
	for i, c := range cs {
		score[c.ID] = recent[i]*highestOften + often[i]*highestRecent
	}
	return score
}

// lastUse returns the time of the last use, or the zero time.
func lastUse(c *client.UsageInfo) time.Time {
	if c.LastUsedAt == nil {
		return time.Time{}
	}
	return *c.LastUsedAt
}

func usageCount(c *client.UsageInfo) int { return c.UsageCount }

// ranks numbers the candidates by a value: 1 for the zero value, 2 for the lowest
// one above it, and equal values alike. It also returns the highest number.
func ranks[T any](cs []*client.UsageInfo, value func(*client.UsageInfo) T, compare func(a, b T) int) (ranks []int64, highest int64) {
	order := make([]int, len(cs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return compare(value(cs[i]), value(cs[j])) })
	ranks = make([]int64, len(cs))
	highest = 1
	var last T
	for _, i := range order {
		if v := value(cs[i]); compare(v, last) > 0 {
			last = v
			highest++
		}
		ranks[i] = highest
	}
	return ranks, highest
}
