package prune

import (
	"cmp"
	"slices"
	"time"

	"github.com/moby/buildkit/client"
)

// node is a record, or a pair of twins.
type node struct {
	record  *Record // the one that is listed
	twin    *Record // the other one, if it is a pair
	parents []*node // with repetitions
	held    bool    // by a user or a child
	inUse   bool
	shared  bool
}

// graph is a view whose names are resolved. It survives cycles, though no
// manager should have any.
type graph []*node

// newGraph reads a view and finds out which of its records are in use.
func newGraph(v View) graph {
	byID := make(map[string]*Record, len(v))
	for i := range v {
		byID[v[i].ID] = &v[i]
	}
	g := make(graph, 0, len(v))
	nodes := make(map[string]*node, len(v))
	add := func(n *node) {
		g = append(g, n)
		for r := range n.records {
			nodes[r.ID] = n
		}
	}
	children := countChildren(v)
	for i := range v { // pairs first: one of the two may not know of the other
		if a, b := &v[i], byID[v[i].Twin]; areTwins(a, b) && nodes[a.ID] == nil && nodes[b.ID] == nil {
			add(newPair(a, b, children))
		}
	}
	for i := range v {
		if nodes[v[i].ID] == nil {
			add(&node{record: &v[i]})
		}
	}
	g.link(nodes)
	return g
}

// areTwins reports whether two records, the second of which may be nil, can be
// listed as one.
func areTwins(a, b *Record) bool {
	return b != nil && a.Mutable != b.Mutable && !a.Removing && !b.Removing
}

// newPair chooses which of two twins is listed.
func newPair(a, b *Record, children map[string]int) *node {
	immutable, mutable := a, b
	if a.Mutable {
		immutable, mutable = b, a
	}
	if immutable.Users > 0 || children[immutable.ID] > 0 {
		return &node{record: immutable, twin: mutable}
	}
	return &node{record: mutable, twin: immutable}
}

// countChildren counts the records that name an ID as their parent.
func countChildren(v View) map[string]int {
	children := make(map[string]int, len(v))
	for i := range v {
		for _, p := range v[i].Parents {
			children[p]++
		}
	}
	return children
}

// link sets what nodes have to do with each other, and who is in use.
func (g graph) link(nodes map[string]*node) {
	for _, n := range g {
		for r := range n.records {
			for _, id := range r.Parents {
				if p := nodes[id]; p != nil {
					n.parents = append(n.parents, p)
					p.held = true
				}
			}
		}
	}
	for _, n := range g {
		for r := range n.records {
			if r.Users > 0 {
				n.held = true
				n.markUp(func(n *node) *bool { return &n.inUse })
			}
		}
	}
}

// markShared asks about every listed record; what a shared one stands on is
// shared too.
func (g graph) markShared(shared SharedFunc) {
	if shared == nil {
		return
	}
	for _, n := range g.listed() {
		if !n.shared && shared(n.record.ID, n.record.Chain) {
			n.markUp(func(n *node) *bool { return &n.shared })
		}
	}
}

// markUp sets a mark on a node and on all that it stands on.
func (n *node) markUp(mark func(*node) *bool) {
	for todo := []*node{n}; len(todo) > 0; {
		last := len(todo) - 1
		n, todo = todo[last], todo[:last]
		if m := mark(n); !*m {
			*m = true
			todo = append(todo, n.parents...)
		}
	}
}

// listed returns the nodes that users get to see, sorted by name.
func (g graph) listed() []*node {
	ns := slices.DeleteFunc(slices.Clone(g), func(n *node) bool { return n.record.Removing })
	slices.SortFunc(ns, func(a, b *node) int { return cmp.Compare(a.record.ID, b.record.ID) })
	return ns
}

// used returns the bytes of all that is listed and not shared.
func (g graph) used() (total int64) {
	for _, n := range g.listed() {
		if !n.shared {
			total += max(n.size(), 0)
		}
	}
	return total
}

// records yields the listed record and the twin.
func (n *node) records(yield func(*Record) bool) {
	if yield(n.record) && n.twin != nil {
		yield(n.twin)
	}
}

// size returns what the node occupies, in bytes; negative if unknown.
func (n *node) size() int64 {
	switch {
	case n.record.Mutable && n.record.Users > 0:
		return 0
	case n.record.Size < 0 && n.twin != nil:
		return max(n.twin.Size, SizeUnknown)
	}
	return max(n.record.Size, SizeUnknown)
}

// usedAfter reports whether the last use is known and later than t.
func (n *node) usedAfter(t time.Time) bool {
	return n.record.LastUsedAt != nil && n.record.LastUsedAt.After(t)
}

// kind returns the record's type, which is never "".
func (n *node) kind() client.UsageRecordType {
	return cmp.Or(n.record.Type, client.UsageRecordTypeRegular)
}

// info describes the node as BuildKit's clients want it.
func (n *node) info() *client.UsageInfo {
	info := &client.UsageInfo{
		ID:          n.record.ID,
		Mutable:     n.record.Mutable,
		InUse:       n.inUse,
		Size:        n.size(),
		CreatedAt:   n.record.CreatedAt,
		UsageCount:  n.record.UsageCount,
		Parents:     slices.Clone(n.record.Parents),
		Description: n.record.Description,
		RecordType:  n.kind(),
		Shared:      n.shared,
	}
	if used := n.record.LastUsedAt; used != nil {
		at := *used
		info.LastUsedAt = &at
	}
	return info
}
