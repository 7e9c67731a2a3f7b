package blob

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// model is the same set, byte by byte.
type model [200]bool

func (m *model) set(s span, v bool) {
	for i := max(0, s.lo); i < min(s.hi, int64(len(m))); i++ {
		m[i] = v
	}
}

func (m *model) spans() (out []span) {
	for i, v := range m {
		if !v {
			continue
		}
		if n := len(out); n > 0 && out[n-1].hi == int64(i) {
			out[n-1].hi++
			continue
		}
		out = append(out, span{int64(i), int64(i) + 1})
	}
	return out
}

func randomSpan(rnd *rand.Rand) span {
	lo := rnd.Int64N(200)
	return span{lo, min(200, lo+rnd.Int64N(40))}
}

func TestRangesAgainstModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var r ranges
	var m, other model
	for range 6_000 {
		s := randomSpan(rnd)
		if rnd.IntN(3) == 0 {
			r.remove(s)
			m.set(s, false)
		} else {
			r.add(s)
			m.set(s, true)
		}
		require.True(t, slices.Equal(m.spans(), r.spans), "%v, %v", m.spans(), r.spans)
		total := int64(0)
		for _, s := range r.spans {
			total += s.len()
		}
		require.Equal(t, total, r.total)

		q := randomSpan(rnd)
		absent := m
		for i := range absent {
			absent[i] = !absent[i] && int64(i) >= q.lo && int64(i) < q.hi
		}
		missing := r.missing(nil, q)
		require.True(t, slices.Equal(absent.spans(), missing), "missing of %v: %v", q, missing)
		require.Equal(t, len(missing) == 0, r.contains(q))

		if rnd.IntN(20) == 0 {
			o := randomSpan(rnd)
			other.set(o, !other[o.lo%200])
			var or ranges
			both := m
			for _, s := range other.spans() {
				or.add(s)
			}
			for i := range both {
				both[i] = both[i] && other[i]
			}
			got := r.intersect(or)
			require.True(t, slices.Equal(both.spans(), got.spans))
		}
	}
}

func TestHintRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	for _, h := range []hint{
		{},
		{size: 100},
		{size: 100, present: ranges{[]span{{0, 1}, {5, 100}}, 96}},
		{size: 1 << 40, verified: true, present: ranges{[]span{{0, 1 << 40}}, 1 << 40}},
	} {
		require.NoError(t, writeHint(path, h, false))
		got, err := readHint(path)
		require.NoError(t, err)
		require.Equal(t, h, got)
	}
	left, err := filepath.Glob(path + "*")
	require.NoError(t, err)
	require.Equal(t, []string{path}, left)
	require.ErrorIs(t, writeHint(path+"/no/dir", hint{}, false), syscall.ENOTDIR)
}

func TestHintRefusesDamage(t *testing.T) {
	good := hint{size: 1000, present: ranges{[]span{{10, 20}, {500, 1000}}, 510}}.marshal()
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x10
		_, err := parseHint(bad)
		require.ErrorIs(t, err, errHint, "byte %d flipped", i)
		_, err = parseHint(good[:i])
		require.ErrorIs(t, err, errHint, "cut at %d", i)
	}
	for name, h := range map[string]hint{
		"span behind the end":    {size: 10, present: ranges{spans: []span{{5, 11}}}},
		"touching spans":         {size: 10, present: ranges{spans: []span{{0, 5}, {5, 6}}}},
		"empty span":             {size: 10, present: ranges{spans: []span{{5, 5}}}},
		"verified, but not all":  {size: 10, verified: true, present: ranges{spans: []span{{0, 9}}}},
		"overflow":               {size: 1<<63 - 1, present: ranges{spans: []span{{1<<63 - 2, 1<<63 - 1}, {2, 1<<63 - 1}}}},
		"spans out of any order": {size: 10, present: ranges{spans: []span{{5, 6}, {0, 2}}}},
	} {
		_, err := parseHint(h.marshal())
		require.ErrorIs(t, err, errHint, name)
	}
}

func FuzzRanges(f *testing.F) {
	f.Add([]byte{}, false)
	for _, h := range []hint{
		{},
		{size: 1000, present: ranges{spans: []span{{10, 20}, {500, 1000}}}},
		{size: 5, verified: true, present: ranges{spans: []span{{0, 5}}}},
	} {
		b := h.marshal()
		f.Add(b, false)
		f.Add(b[len(hintMagic):len(b)-4], true)
	}
	f.Fuzz(func(t *testing.T, b []byte, frame bool) {
		if frame { // magic and checksum, which chance does not find
			b = append([]byte(hintMagic), b...)
			b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
		}
		h, err := parseHint(b)
		if err != nil {
			require.ErrorIs(t, err, errHint)
			return
		}
		var sum, end int64
		for i, s := range h.present.spans {
			require.False(t, s.empty())
			require.True(t, s.lo > end || (i == 0 && s.lo >= 0))
			require.LessOrEqual(t, s.hi, h.size)
			sum, end = sum+s.len(), s.hi
		}
		require.Equal(t, sum, h.present.total)
		again, err := parseHint(h.marshal())
		require.NoError(t, err)
		require.Equal(t, h, again)
	})
}
