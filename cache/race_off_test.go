//go:build !race

package cache

// everyFault is 1: each call fails in turn.
const everyFault = 1
