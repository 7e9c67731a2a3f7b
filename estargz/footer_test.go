package estargz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

func gzipFooter(extra string) []byte {
	b := []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(extra)))
	b = append(b, extra...)
	return append(b, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
}

func zstdFooter(magic string, size int, fields ...uint64) []byte {
	b := binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, uint32(size))
	for i := range size/8 - 1 {
		v := uint64(0)
		if i < len(fields) {
			v = fields[i]
		}
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return append(b, magic...)
}

func TestParseFooter(t *testing.T) {
	estargzAt := func(at int64) []byte { return gzipFooter(fmt.Sprintf("SG\x16\x00%016xSTARGZ", at)) }
	for _, tc := range []struct {
		name   string
		before int // bytes of the blob before the footer
		footer []byte
		want   Location
		err    error
	}{
		{name: "estargz", before: 1000, footer: estargzAt(900), want: Location{Format: FormatEStargz, Offset: 900, Size: 100}},
		{name: "estargz, nothing but a TOC", before: 100, footer: estargzAt(0), want: Location{Format: FormatEStargz, Size: 100}},
		{name: "estargz, TOC behind the footer", before: 1000, footer: estargzAt(1000), err: ErrCorrupt},
		{name: "estargz, TOC far outside", before: 1000, footer: estargzAt(1 << 62), err: ErrCorrupt},
		{name: "estargz, not a number", before: 1000, footer: gzipFooter("SG\x16\x00+00000000000000fSTARGZ"), err: ErrCorrupt},
		{name: "estargz, too large a number", before: 1000, footer: gzipFooter("SG\x16\x00ffffffffffffffffSTARGZ"), err: ErrCorrupt},
		{name: "other subfield of the same length", before: 1000, footer: gzipFooter("XY\x16\x000000000000000000STARGZ"), err: ErrNotLazy},
		{name: "other length in the subfield", before: 1000, footer: gzipFooter("SG\x15\x000000000000000000STARGZ"), err: ErrNotLazy},
		{name: "legacy", before: 1000, footer: gzipFooter(fmt.Sprintf("%016xSTARGZ", 10)), want: Location{Format: FormatStargz, Offset: 10, Size: 990}},
		{name: "legacy, TOC outside", before: 1000, footer: gzipFooter(fmt.Sprintf("%016xSTARGZ", 1001)), err: ErrCorrupt},
		{name: "external", before: 1000, footer: gzipFooter("SG\x11\x00STARGZEXTERNALTOC"), want: Location{Format: FormatEStargzExtern}},
		{name: "zstd short", before: 1000, footer: zstdFooter("GnUlInUx", 40, 500, 100, 300, 1), want: Location{FormatZstdChunked, 500, 100, 300}},
		{name: "zstd long", before: 1000, footer: zstdFooter("GNUlInUx", 64, 500, 100, 300, 1, 608, 10, 20), want: Location{FormatZstdChunked, 500, 100, 300}},
		{name: "zstd, up to the footer", before: 1000, footer: zstdFooter("GnUlInUx", 40, 500, 500, 0, 1), want: Location{FormatZstdChunked, 500, 500, 0}},
		{name: "zstd, into the footer", before: 1000, footer: zstdFooter("GnUlInUx", 40, 500, 501, 0, 1), err: ErrCorrupt},
		{name: "zstd, sum overflows", before: 1000, footer: zstdFooter("GnUlInUx", 40, 1<<63, 1<<63, 0, 1), err: ErrCorrupt},
		{name: "zstd, no bytes", before: 1000, footer: zstdFooter("GnUlInUx", 40, 500, 0, 0, 1), err: ErrCorrupt},
		{name: "zstd, absurd uncompressed size", before: 1000, footer: zstdFooter("GnUlInUx", 40, 500, 100, 1<<63, 1), err: ErrCorrupt},
		{name: "zstd, unknown kind", before: 1000, footer: zstdFooter("GnUlInUx", 40, 500, 100, 300, 2), err: ErrNotLazy},
		{name: "zstd, unknown length", before: 1000, footer: zstdFooter("GNUlInUx", 72, 500, 100, 300, 1), err: ErrNotLazy},
		{name: "zeros", before: 1000, err: ErrNotLazy},
		{name: "short blob", before: 5, err: ErrNotLazy},
		{name: "empty blob", before: 0, err: ErrNotLazy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			blob := append(make([]byte, tc.before), tc.footer...)
			for _, n := range []int{len(blob), min(len(blob), MinTail), min(len(blob), 200)} {
				got, err := ParseFooter(blob[len(blob)-n:], int64(len(blob)))
				if !errors.Is(err, tc.err) {
					t.Fatalf("tail of %d: error %v, want %v", n, err, tc.err)
				}
				if got != tc.want {
					t.Errorf("tail of %d: %+v, want %+v", n, got, tc.want)
				}
			}
		})
	}
	if _, err := ParseFooter(make([]byte, 50), 1000); err == nil || errors.Is(err, ErrNotLazy) {
		t.Errorf("tail that is too short to tell: %v", err)
	}
	if _, err := ParseFooter(make([]byte, 1001), 1000); !errors.Is(err, ErrCorrupt) {
		t.Errorf("tail longer than the blob: %v", err)
	}
}

func TestWithin(t *testing.T) {
	blob := []byte("0123456789")
	loc := Location{Format: FormatEStargz, Offset: 4, Size: 3}
	for tail, want := range map[int]string{10: "456", 6: "456", 5: "", 0: ""} {
		got, ok := loc.Within(blob[10-tail:], 10)
		if ok != (want != "") || !bytes.Equal(got, []byte(want)) {
			t.Errorf("tail of %d bytes: %q, %v", tail, got, ok)
		}
	}
	for _, loc := range []Location{{Format: FormatEStargzExtern}, {Offset: -1, Size: 3}, {Offset: 8, Size: 3}, {Offset: 1 << 62, Size: 1 << 62}} {
		if got, ok := loc.Within(blob, 10); ok {
			t.Errorf("%+v: %q", loc, got)
		}
	}
}

func FuzzFooter(f *testing.F) {
	f.Add(gzipFooter(fmt.Sprintf("SG\x16\x00%016xSTARGZ", 3)), int64(100))
	f.Add(gzipFooter(fmt.Sprintf("%016xSTARGZ", 3)), int64(100))
	f.Add(gzipFooter("SG\x11\x00STARGZEXTERNALTOC"), int64(100))
	f.Add(zstdFooter("GNUlInUx", 64, 500, 100, 300, 1), int64(1000))
	f.Add(zstdFooter("GnUlInUx", 40, 500, 100, 300, 1), int64(1000))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		loc, err := ParseFooter(tail, size)
		if err != nil {
			return
		}
		if err := loc.check(size); err != nil {
			t.Fatalf("accepted %+v: %v", loc, err)
		}
		if b, ok := loc.Within(tail, size); ok && int64(len(b)) != loc.Size {
			t.Fatalf("%d bytes for %+v", len(b), loc)
		}
	})
}

func TestTailOf(t *testing.T) {
	for size, want := range map[int64]int64{
		0: TailSize, 1: TailSize, 50 << 20: TailSize, 100 << 20: 100 << 20 / tailShare, 380 << 20: 380 << 20 / tailShare, 1 << 40: maxTail, -5: TailSize,
	} {
		if got := TailOf(size); got != want {
			t.Errorf("%d: %d, want %d", size, got, want)
		}
	}
}
