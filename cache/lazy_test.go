package cache

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// mixtures are all chains of a length of layers of the given kinds.
func mixtures(n int, kinds ...layerKind) (list [][]layerKind) {
	if n == 0 {
		return [][]layerKind{nil}
	}
	for _, below := range mixtures(n-1, kinds...) {
		for _, k := range kinds {
			list = append(list, append(slices.Clone(below), k))
		}
	}
	return list
}

// TestMixtures: of a chain, the layers that can't be lazy are pulled and extracted,
// each once, and all others become remote snapshots without a byte of them.
func TestMixtures(t *testing.T) {
	for n := 1; n <= 4; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := newWorld(t, true)
			for i, kinds := range mixtures(n, lazyLayer, plainLayer, layoutLayer) {
				w.checkMixture(fmt.Sprintf("c%d.", i), kinds)
			}
			w.pruneAll()
			w.checkEmpty()
		})
	}
}

func (w *world) checkMixture(prefix string, kinds []layerKind) {
	t := w.t
	t.Helper()
	layers := w.layers(prefix, kinds...)
	h := w.pull(layers...)
	defer w.release(h)
	w.reg.happened()
	w.faults.fail(0)
	if err := h.Extract(w.ctx(), group("s")); err != nil {
		t.Fatalf("%v: %v", kinds, err)
	}
	w.faults.disarm()
	var wantChain, wantGot, wantApplied []string
	for _, l := range layers {
		switch l.kind {
		case lazyLayer:
			wantChain = append([]string{"remote"}, wantChain...)
		case plainLayer:
			wantChain = append([]string{"plain"}, wantChain...)
			wantGot = append(wantGot, "unlazy "+l.name)
			wantApplied = append(wantApplied, "apply "+l.desc.Digest.String())
		case layoutLayer:
			wantChain = append([]string{"plain"}, wantChain...)
			wantGot = append(wantGot, "provide "+l.name)
			wantApplied = append(wantApplied, "apply "+l.desc.Digest.String())
		}
	}
	if got := w.chainOf(h); !slices.Equal(got, wantChain) {
		t.Errorf("%v: snapshots from the top are %v, want %v", kinds, got, wantChain)
	}
	got := w.reg.happened("unlazy", "provide")
	slices.Sort(got)
	slices.Sort(wantGot)
	if !slices.Equal(got, wantGot) {
		t.Errorf("%v: pulled %v, want %v", kinds, got, wantGot)
	}
	var applied []string
	for _, c := range w.faults.calls() {
		if strings.HasPrefix(c, "apply") {
			applied = append(applied, c)
		}
	}
	if !slices.Equal(applied, wantApplied) {
		t.Errorf("%v: extracted %v, want %v in this order", kinds, applied, wantApplied)
	}
	w.checkFiles(h, names(layers...)...)
}
