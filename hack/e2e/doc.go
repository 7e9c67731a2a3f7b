// Package e2e tests the daemon from outside: real builds with runc on real
// Debian images from a real registry, with stock buildkitd beside it where the
// two have to agree.
//
// The tests run as root on Linux with FUSE and overlayfs. Images and stock
// programs come from package lab, which makes them once and keeps them.
//
// Those that take long and do not look at the time run side by side, after the others.
package e2e
