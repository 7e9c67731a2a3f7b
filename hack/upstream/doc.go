// Command upstream runs BuildKit's own integration tests against stock
// buildkitd and against ours, offline, and reports the difference.
//
// It is a program, not a test, because a run takes minutes and because what
// it judges is a difference: a test that fails on stock too (no network, no
// public images, no CNI plugins on this machine) says nothing about us.
//
// Everything it makes lies in one cache directory:
//
//	upstream/<version>/src        a writable copy of the BuildKit module (some tests write beside their sources)
//	upstream/<version>/bin        stock buildkitd, buildctl, the test binaries, registry, buildkit-runc
//	upstream/<version>/results    what each test did on stock, by mode, kind of base and package; logs of both sides
//	upstream/mirror-<base>-<n>    the storage of the registry that holds the stand-in images
//
// # Words
//
// A side is one of the two daemons, "stock" or "ours". A mode is the value of
// --oci-worker-snapshotter. A base is how the layers of the stand-in images
// are written: "gzip" as on Docker Hub, or "estargz", which makes nearly every
// test run on a lazy layer.
package main
