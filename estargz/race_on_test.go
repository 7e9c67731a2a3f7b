//go:build race

package estargz_test

const raceEnabled = true
