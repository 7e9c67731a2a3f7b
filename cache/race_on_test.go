//go:build race

package cache

// everyFault is how many calls lie between two that fail in turn, after the first
// ones. The race detector makes a run of all of them a matter of minutes; without
// it they are all run (see the stage alloc of hack/test).
const everyFault = 7
