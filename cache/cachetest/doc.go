// Package cachetest is a test suite for cache managers of BuildKit's interface. It
// knows no implementation: what it expects is what BuildKit's own manager does, so
// that one runs the suite too, and tells whether the suite is right.
//
// # Words
//
// An env is a state directory with a manager on it, over containerd's metadata
// database, a content store and a snapshotter, as in a worker. It can be restarted,
// or crash: its directory is copied as it is, and the copy opened. A step is a
// mutable record that is written to and committed. A layer is the tar of some
// files, as a blob. A picture is all that a state directory holds, as text in which
// ids and times have names, so that two managers can be compared.
//
// # Rules
//
// Each test ends with a check that nothing is left: when all refs are released and
// all records pruned there is no lease, snapshot, blob, record, index entry or mount.
//
// A fault that BuildKit's manager is known to have is a Bug. The implementation
// says which it has; the test of that bug demands the fault of those, and its
// absence of the others. No test is skipped.
package cachetest
