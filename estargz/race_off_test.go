//go:build !race

package estargz_test

const raceEnabled = false
