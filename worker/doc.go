// Package worker is the composition root: it builds BuildKit's worker.Worker
// out of BuildKit's operations, sources, exporters and executor, and of our
// snapshotter.
//
// # State directory
//
// The layout is BuildKit's, so that a root can be taken from stock buildkitd
// and given back to it. Under the daemon's root, one directory a snapshotter,
// runc-<snapshotter>, holds
//
//	workerid             the worker's id, made once
//	metadata_v2.db       the cache manager's records
//	containerdmeta.db    containerd's metadata: snapshots, content, leases
//	content/             blobs
//	snapshots/           the snapshotter's own directory
//	executor/            bundles, root mounts and resolv.conf of running steps
//	cachemounts/         mounts that are shared by steps
//	net/                 network namespaces
//	inuse                there while a process uses the directory, and after a crash
//	lazy/                (stargz) sparse blobs and parsed TOCs of lazy layers
//
// lazy/ is beside content/ because a blob that became whole enters the content
// store as a hard link.
//
// # Lazy layers
//
// The cache manager (package cache) gets the lazy file system as an ability beside
// the snapshotter: it resolves layers before the snapshotter prepares them, since
// containerd's metadata database holds its lock over that. Whole blobs of lazy
// layers enter the content store as links (adopter). With a stargz snapshotter in
// another process the ability is what its labels can do (foreign).
//
// Around BuildKit's parts there are: results that load with what a build knows of
// lazy blobs (Worker.LoadRef), a content store that sees which image is pulled (manifests), steps
// that are known before they run (announcements), an observer of registry traffic that tells a stopping
// daemon which builds hang (traffic), a collector that frees what no snapshot needs
// (collector), patience with registries that can't give a manifest at present
// (Patient), and the cause of I/O errors that steps and copies meet (followed,
// explainedOp).
//
// # End
//
// Close ends the parts in the reverse order of their dependence: BuildKit's
// worker, snapshotter, file system, blob store, databases; then it detaches what
// is left mounted under the worker's directory. It takes seconds at most,
// whatever registries and readers do.
package worker
