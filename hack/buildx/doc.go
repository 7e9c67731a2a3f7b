// Package buildx tests our daemon with the client that most people use: buildx
// itself, with its remote driver and with its docker-container driver in a real
// Docker engine. All results are read back, from a registry, a tar or a
// directory; an exit status proves nothing.
//
// hack/buildx-test installs what the tests need and runs them. They need root,
// buildx in the cache directory, dockerd in PATH, and a Debian machine to make
// the base images on.
//
// Two variables change what is tested: LAZYKIT_BUILDKITD is the path of another
// daemon (stock, to see that a test asks for nothing that only we have), and
// LAZYKIT_SNAPSHOTTER the value of --oci-worker-snapshotter (default stargz).
package buildx
