package depcheck

// Module is the path of our module; the tables name packages relative to it.
const Module = "github.com/lazykit/lazykit"

// Arrow says which of our packages a package may import.
type Arrow struct {
	// From is a package, or a subtree ("cmd/..."). The longest match counts.
	From string
	// To lists packages or subtrees. Packages of one subtree may import each other.
	To []string
}

// Door says that dependencies may be imported only by some of our packages.
type Door struct {
	Name string
	// Imports are import paths; everything below them is meant too.
	Imports []string
	// In lists packages or subtrees.
	In []string
}

// Allowance is an exception from an arrow or a door.
type Allowance struct {
	From   string // package
	Import string // import path, exactly
	Why    string
}

// Rules is all that is checked.
type Rules struct {
	Module     string
	Arrows     []Arrow
	Doors      []Door
	Allowances []Allowance
	BadNames   []string // of packages
}

// Ours are the rules of this repository.
var Ours = Rules{
	Module: Module,
	Arrows: []Arrow{
		// level 0
		{From: "estargz", To: []string{"estargz/inflate"}},
		{From: "estargz/inflate"},
		{From: "session"},
		{From: "remotesnapshot"},
		{From: "remotesnapshot/blob"},
		{From: "remotesnapshot/profile"},
		// level 1
		{From: "fuse", To: []string{"estargz", "fuse/erofs"}},
		{From: "fuse/erofs", To: []string{"estargz"}},
		{From: "remotesnapshot/layer", To: []string{"estargz"}},
		// level 2
		{From: "remotesnapshot/lazyfs", To: []string{"remotesnapshot", "remotesnapshot/layer", "remotesnapshot/blob", "remotesnapshot/profile", "fuse", "fuse/erofs", "estargz"}},
		// level 3
		{From: "cache/...", To: []string{"remotesnapshot"}},
		{From: "remotesnapshot/store", To: []string{"remotesnapshot/layer", "remotesnapshot/blob", "fuse", "remotesnapshot/lazyfs"}},
		// level 4
		{From: "worker", To: []string{"session", "cache/...", "remotesnapshot", "remotesnapshot/lazyfs", "remotesnapshot/blob", "remotesnapshot/profile"}},
		// level 5
		{From: "cmd/buildkitd", To: []string{"worker", "cmd/buildkitd/stargzconfig"}},
		{From: "cmd/buildkitd/stargzconfig"},
		{From: "cmd/lazyctl", To: []string{
			"worker", "session", "cache/...", "estargz", "fuse", "remotesnapshot", "remotesnapshot/blob",
			"remotesnapshot/layer", "remotesnapshot/lazyfs", "remotesnapshot/profile", "remotesnapshot/store",
		}},
		{From: "hack/...", To: []string{"..."}},
	},
	Doors: []Door{
		{
			Name:    "go-fuse",
			Imports: []string{"github.com/hanwen/go-fuse"},
			In:      []string{"fuse"},
		},
		{
			Name:    "BuildKit",
			Imports: []string{"github.com/moby/buildkit"},
			In:      []string{"worker", "cache/...", "session", "cmd/..."},
		},
		{
			Name: "bbolt and containerd's metadata",
			Imports: []string{
				"go.etcd.io/bbolt",
				"github.com/containerd/containerd/v2/core/snapshots/storage",
				"github.com/containerd/containerd/v2/core/metadata",
			},
			In: []string{"remotesnapshot", "cache/..."},
		},
		{
			// The packages between a read and the registry hand ranges on; a
			// request of theirs would go past the scheduler.
			Name:    "HTTP requests",
			Imports: []string{"net/http"},
			In:      []string{"remotesnapshot/blob", "session", "worker", "cmd/..."},
		},
		{
			Name: "(de)compression",
			Imports: []string{
				"compress",
				"github.com/klauspost/compress",
				"github.com/containerd/containerd/v2/pkg/archive/compression",
				"github.com/containerd/stargz-snapshotter/estargz",
			},
			In: []string{"estargz", "cache/..."},
		},
		{
			Name:    "a registry server",
			Imports: []string{"github.com/distribution/distribution"},
		},
	},
	Allowances: []Allowance{
		{
			From: "worker", Import: "go.etcd.io/bbolt",
			Why: "opens containerd's metadata database, as BuildKit's worker does, and looks into one to tell whether it has records",
		},
		{
			From: "worker", Import: "github.com/containerd/containerd/v2/core/metadata",
			Why: "puts containerd's metadata database over the content store and the snapshotter, as BuildKit's worker does",
		},
		{
			From: "worker", Import: Module + "/remotesnapshot/layer",
			Why: "fills in the layer's options, which are a field of lazyfs' options",
		},
		{
			From: "cmd/buildkitd", Import: "go.etcd.io/bbolt",
			Why: "opens the build history's database with BuildKit's options",
		},
	},
	BadNames: []string{"util", "utils", "common", "types", "helpers", "misc"},
}
