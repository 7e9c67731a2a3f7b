package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// difference is one thing that is not as in stock buildkitd v0.33.1. The table in
// docs/buildkitd.md has a row for each, which starts with its subject.
type difference struct {
	subject string // a flag, a config key, or what it is about
	kind    kindOfDifference
}

type kindOfDifference int

const (
	usageText kindOfDifference = iota // a flag's help
	ignored                           // accepted, without effect
	refused                           // an error when it asks for what we have not
	extended                          // means more than in stock
	stricter                          // an error where stock is silent
	corrected                         // does what stock documents and does not do
	behaviour                         // of the daemon as a whole
	leftOut                           // not accepted
	otherwise                         // another default or meaning
)

// differences are all of them.
var differences = []difference{
	{"--containerd-worker", refused},
	{"--containerd-worker-addr", ignored},
	{"--containerd-worker-labels", ignored},
	{"--containerd-worker-platform", ignored},
	{"--containerd-worker-namespace", ignored},
	{"--containerd-worker-runtime", ignored},
	{"--containerd-worker-net", ignored},
	{"--containerd-cni-config-path", ignored},
	{"--containerd-cni-binary-dir", ignored},
	{"--containerd-cni-pool-size", ignored},
	{"--containerd-worker-snapshotter", ignored},
	{"--containerd-worker-apparmor-profile", ignored},
	{"--containerd-worker-selinux", ignored},
	{"--containerd-max-parallelism", ignored},
	{"--containerd-worker-rootless", ignored},
	{"--containerd-worker-gc", ignored},
	{"--containerd-worker-gc-keepstorage", ignored},
	{"--oci-worker-snapshotter", usageText},
	{"--oci-worker-snapshotter", extended},
	{"--oci-cni-config-path", corrected},
	{"--allow-insecure-entitlement", stricter},
	{"--version", behaviour},
	{"Windows service flags", leftOut},
	{"worker.containerd.enabled", refused},
	{"worker.containerd.*", ignored},
	{"worker.oci.snapshotter", extended},
	{"worker.oci.stargzSnapshotter.*", stricter},
	{"worker.oci.stargzSnapshotter.no_background_fetch", otherwise},
	{"grpc.securityDescriptor", ignored},
	{"grpc.address npipe://", leftOut},
	{"SIGTERM", behaviour},
	{"second SIGTERM", behaviour},
	{"cached steps on lazy bases", behaviour},
	{"manifests and configs of images", behaviour},
	{"bytes of a base that can't be had", behaviour},
	{"buildctl prune, garbage collection", behaviour},
	{"buildctl du -v", behaviour},
	{"zstd:chunked", behaviour},
	{"overlaybd through a proxied snapshotter", leftOut},
	{"stale mounts", behaviour},
	{"debug/flight/trace/set_period", corrected},
}

func isDifferent(subject string, kinds ...kindOfDifference) bool {
	for _, d := range differences {
		for _, k := range kinds {
			if d.subject == subject && d.kind == k {
				return true
			}
		}
	}
	return false
}

// TestDifferencesAreDocumented holds the man page to the table, in both directions.
func TestDifferencesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/buildkitd.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(page), "\n## Differences from stock\n")
	require.True(t, ok, "the page has no section of differences")
	section, _, _ = strings.Cut(section, "\n## ")

	documented := map[string]bool{}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 || strings.HasPrefix(strings.TrimSpace(cells[1]), "-") || strings.TrimSpace(cells[1]) == "what" {
			continue
		}
		documented[strings.Trim(strings.TrimSpace(cells[1]), "`")] = true
	}
	known := map[string]bool{}
	for _, d := range differences {
		known[d.subject] = true
		require.True(t, documented[d.subject], "docs/buildkitd.md does not list %q", d.subject)
	}
	for subject := range documented {
		require.True(t, known[subject], "docs/buildkitd.md lists %q, which is no difference that tests know of", subject)
	}
}
