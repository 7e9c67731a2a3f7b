//go:build race

package fuse_test

const raceDetector = true
