package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMediansAndCheck(t *testing.T) {
	ours := func(seconds float64, layers int, bytes, memory int64) result {
		return result{Network: "shaped", Workload: "go", Variant: "ours", Seconds: seconds, Layers: layers, Others: 3, Bytes: bytes, Memory: memory}
	}
	stock := ours(5, 100, 1000, 200e6)
	stock.Variant = "stock-stargz"
	broken := ours(100, 1, 1, 1)
	broken.Error = "step failed"

	m := medianOf("shaped", "go", "ours", []result{ours(3, 30, 10, 1), ours(1, 10, 30, 2), stock, broken, ours(2, 20, 20, 3)})
	require.Equal(t, median{
		Network: "shaped", Workload: "go", Variant: "ours", N: 3, Failed: 1,
		Seconds: 2, Fastest: 1, Slowest: 3, Layers: 20, Others: 3, Bytes: 20, Memory: 2, MemMax: 3,
	}, m)

	for _, tc := range []struct {
		name string
		ours result
		want string // "" passes
	}{
		{"better in all", ours(4, 99, 999, 99e6), ""},
		{"as fast", ours(5, 99, 999, 99e6), ""},
		{"slower", ours(5.1, 99, 999, 99e6), "took 5.10 s"},
		{"as many requests", ours(4, 100, 999, 99e6), "sent 103 requests"},
		{"more bytes", ours(4, 99, 1001, 99e6), "received 1001 bytes"},
		{"memory", ours(4, 99, 999, 100e6), "100.0 MB of anonymous memory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			all := []result{tc.ours, stock}
			r := &report{Medians: []median{medianOf("shaped", "go", "ours", all), medianOf("shaped", "go", "stock-stargz", all)}}
			err := r.check()
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tc.want)
		})
	}
}
