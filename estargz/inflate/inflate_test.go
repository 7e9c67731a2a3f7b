package inflate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	stdgzip "compress/gzip"

	"github.com/klauspost/compress/gzip"
)

// texts are data of different kinds: programs, text, noise, runs, nothing.
func texts(t testing.TB) map[string][]byte {
	t.Helper()
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile("inflate.go")
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	runs := bytes.Repeat([]byte("a"), 70_000)
	runs = append(runs, bytes.Repeat([]byte("abc"), 30_000)...)
	runs = append(runs, bytes.Repeat([]byte("0123456"), 10_000)...)
	few := make([]byte, 100_000) // long codes: symbols with very different frequencies
	for i := range few {
		for few[i] = 0; r.Uint32()&1 == 0 && few[i] < 250; few[i]++ {
		}
	}
	return map[string][]byte{
		"program": exe[:min(len(exe), 3<<20)], "text": src, "noise": noise, "runs": runs, "few": few,
		"mixed": append(append(bytes.Clone(src), noise[:70_000]...), src...), "byte": {7}, "none": {},
	}
}

func compress(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestGzip: all kinds of data, at all levels, whole and in part, in one member and
// in several.
func TestGzip(t *testing.T) {
	var d Decoder
	for name, data := range texts(t) {
		for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
			src := compress(t, data, level)
			for _, n := range []int{len(data), len(data) / 2, max(0, len(data)-1), min(len(data), 300)} {
				dst := make([]byte, n)
				if _, err := d.Gzip(dst, src); err != nil {
					t.Fatalf("%s, level %d, %d of %d bytes: %v", name, level, n, len(data), err)
				}
				if !bytes.Equal(dst, data[:n]) {
					t.Fatalf("%s, level %d: wrong bytes", name, level)
				}
			}
			if n, err := d.Gzip(make([]byte, len(data)+1), src); n != len(data) || !errors.Is(err, ErrShort) {
				t.Errorf("%s, level %d, one byte more than there is: %d of %d, %v", name, level, n, len(data), err)
			}
			half := len(data) / 2
			src = append(compress(t, data[:half], level), compress(t, data[half:], level)...)
			src = append(compress(t, nil, level), src...)
			dst := make([]byte, len(data))
			if _, err := d.Gzip(dst, append(src, "what follows"...)); err != nil || !bytes.Equal(dst, data) {
				t.Errorf("%s, level %d, two members: %v", name, level, err)
			}
		}
	}
}

func TestHeaders(t *testing.T) {
	var b bytes.Buffer
	w := stdgzip.NewWriter(&b)
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	fmt.Fprint(w, "contents")
	w.Close()
	src := b.Bytes()
	var d Decoder
	dst := make([]byte, len("contents"))
	if _, err := d.Gzip(dst, src); err != nil || string(dst) != "contents" {
		t.Errorf("%q: %v", dst, err)
	}
	for n := range src {
		_, err := d.Gzip(make([]byte, 9), src[:n])
		if !errors.Is(err, ErrShort) {
			t.Errorf("%d of %d bytes: %v", n, len(src), err)
		}
	}
	src[3] |= 1 << 1 // a checksum of the header, which the text has no bytes for
	if _, err := d.Gzip(dst, src); err == nil {
		t.Error("two bytes of the text are taken for a checksum, and it goes on")
	}
	if _, err := d.Gzip(dst, []byte("no gzip header here")); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

// TestOtherMember: a distance may not reach into the member before.
func TestOtherMember(t *testing.T) {
	first := compress(t, []byte("abcdefgh"), gzip.BestCompression)
	// Header, then a fixed block: a match of three at distance one.
	second := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 0x03, 0x02, 0x00, 0, 0, 0, 0, 0, 0, 0, 0}
	var d Decoder
	if n, err := d.Gzip(make([]byte, 11), append(first, second...)); n != 8 || !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
}

// FuzzGzip compares with the standard library. That one also fails for what comes
// behind the bytes that are wanted, and then keeps back some of those.
func FuzzGzip(f *testing.F) {
	for _, data := range texts(f) {
		data = data[:min(len(data), 2000)]
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 9} {
			f.Add(compress(f, data, level), uint16(len(data)))
		}
	}
	var d Decoder
	f.Fuzz(func(t *testing.T, src []byte, n uint16) {
		dst := make([]byte, n, int(n)+8)
		copy(dst[n:int(n)+8], "guarding")
		got, err := d.Gzip(dst, src)
		if string(dst[n:int(n)+8]) != "guarding" {
			t.Fatal("wrote past the end")
		}
		want := make([]byte, n)
		z, werr := stdgzip.NewReader(bytes.NewReader(src))
		if werr == nil {
			_, werr = io.ReadFull(z, want)
		}
		if (got == int(n)) != (err == nil) {
			t.Fatalf("%d of %d bytes, and the error is %v", got, n, err)
		}
		if werr == nil && (err != nil || !bytes.Equal(dst, want)) {
			t.Fatalf("%v, the standard library has no error", err)
		}
	})
}

func BenchmarkGzip(b *testing.B) {
	for name, data := range texts(b) {
		if len(data) < 1000 {
			continue
		}
		src := compress(b, data, gzip.BestCompression)
		dst := make([]byte, len(data))
		b.Run(name+"/whole", func(b *testing.B) {
			var d Decoder
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := d.Gzip(dst, src); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/stream", func(b *testing.B) {
			var z gzip.Reader
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := z.Reset(bytes.NewReader(src)); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(&z, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
