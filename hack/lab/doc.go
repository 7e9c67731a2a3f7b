// Package lab sets up what the tests, the demo and the benchmark need of the
// outside world, for real: Debian packages, base images in several layer
// formats, a registry behind a link of a chosen latency and bandwidth, stock
// BuildKit, daemons on fresh state, and builds on them.
//
// Everything that takes long is kept in a cache directory (see CacheDir) and is
// made once, also when several processes ask at the same time. Whatever is made
// is complete when it appears there: work happens in a temporary name, and a
// rename ends it.
//
// Nothing here is for production code, and all of it expects Linux, root and,
// for the images, a Debian machine.
package lab
