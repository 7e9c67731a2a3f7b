// Package prune decides what a cache manager removes and what it reports as its
// disk usage. It is pure: a manager describes its records in a [View], and gets
// decisions back. There is no I/O, no lock, no clock and no goroutine in here,
// and equal input gives equal output whatever the order of the view.
//
// # Words
//
// A record is a piece of state that a manager keeps: the result of a step, a
// layer of an image, a cache mount. Its parents are the records that it is made
// on or of: one for a step, two for a diff, any number for a merge. A record
// holds its parents for as long as it exists.
//
// A record is in use when somebody who is not a record holds it, or when one of
// its children is in use. One that has children but is not in use is dead
// weight: it can't be removed yet, but nobody would miss it.
//
// Twins are two records of one snapshot: the mutable one that a step wrote to
// and the immutable one that it became, until that is made final. They are listed,
// counted and removed as one: under the immutable one's name while something
// holds that, and under the mutable one's otherwise.
//
// A record is shared when its data are kept by somebody else too (an image
// store, says the manager), so that removing it frees nothing; with it, all
// that it stands on. What is shared does not count as space used.
//
// # A prune
//
// [Parse] reads a policy once, [Policy.Begin] fixes how far to go, and
// [Run.Next] is asked again and again which records to remove, each time with a
// fresh view, because the removal of a child frees its parents:
//
//	policy, err := prune.Parse(info)
//	...
//	run := policy.Begin(view, free, shared)
//	for {
//		batch := run.Next(view, now)
//		// remove the batch; stop if it is empty or nothing of it could be removed
//	}
//
// The goal is fixed at the beginning because free space is no guide during a
// prune: a removed record's bytes come back only when the content and the
// snapshots are garbage collected, after the prune.
//
// A policy with a limit on space removes one record at a time and stops as soon
// as it can. One without removes all that it may, some at a time, so that
// progress can be shown and locks are not kept for long.
//
// # Against BuildKit
//
// Users see what BuildKit's manager does, but for these:
//
//   - a policy of which only the free space is asked for removes nothing when
//     there is enough of it (BuildKit removes one record per sweep);
//   - the removal of a shared record does not count as space gained, since it was
//     never counted as space used;
//   - filters see a record's parents in a prune as they do in a usage report;
//   - the order of removal is a total order: what was never used comes first, and
//     ties are decided by age and then by name.
package prune
