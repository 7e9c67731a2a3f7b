package remotesnapshot

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
)

// mappedRoot is the host's user that the mapping labels of a new snapshot make
// root; ok is false without such labels. A mapping that is absent beside the
// other one maps every id to itself.
func mappedRoot(labels map[string]string) (_ owner, ok bool, err error) {
	uids, hasUIDs := labels[snapshots.LabelSnapshotUIDMapping]
	gids, hasGIDs := labels[snapshots.LabelSnapshotGIDMapping]
	if !hasUIDs && !hasGIDs {
		return owner{}, false, nil
	}
	o := owner{known: true}
	if o.uid, err = hostRoot(uids); err == nil {
		o.gid, err = hostRoot(gids)
	}
	if err != nil {
		return owner{}, false, fmt.Errorf("id mapping labels of a snapshot: %w", err)
	}
	return o, true, nil
}

// hostRoot maps id 0 through mappings of the form "container:host:size,...".
func hostRoot(mappings string) (int, error) {
	if mappings == "" {
		return 0, nil
	}
	found := -1
	for m := range strings.SplitSeq(mappings, ",") {
		var n [3]uint64
		parts := strings.Split(m, ":")
		if len(parts) != len(n) {
			return 0, fmt.Errorf("%q is not container:host:size: %w", m, cerrdefs.ErrInvalidArgument)
		}
		for i, p := range parts {
			var err error
			// 2^32-1 is the kernel's "no such id".
			if n[i], err = strconv.ParseUint(p, 10, 32); err != nil || n[i] == math.MaxUint32 {
				return 0, fmt.Errorf("%q is not container:host:size: %w", m, cerrdefs.ErrInvalidArgument)
			}
		}
		if container, host, size := n[0], n[1], n[2]; found < 0 && container == 0 && size > 0 {
			found = int(host)
		}
	}
	if found < 0 {
		return 0, fmt.Errorf("%q maps nothing to root: %w", mappings, cerrdefs.ErrInvalidArgument)
	}
	return found, nil
}
