package layer

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
)

// elf makes a program: headers, names, dynamic section, and some bytes behind.
func elf(interp, runPath string, needed ...string) []byte {
	le := binary.LittleEndian
	const segments = 4
	names := []byte{0}
	name := func(s string) uint64 {
		at := len(names)
		names = append(append(names, s...), 0)
		return uint64(at)
	}
	var dynamic []byte
	entry := func(tag, value uint64) {
		dynamic = le.AppendUint64(le.AppendUint64(dynamic, tag), value)
	}
	for _, n := range needed {
		entry(dynNeeded, name(n))
	}
	if runPath != "" {
		entry(dynRunPath, name(runPath))
	}
	loader := name(interp)
	const address = 0x400000 // of the first byte in memory
	at := uint64(elfHeader + segments*elfSegment)
	entry(dynStrings, address+at)
	entry(0, 0)
	end := at + uint64(len(names)+len(dynamic))

	out := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, elfHeader-7)...)
	le.PutUint16(out[18:], 62)
	le.PutUint64(out[32:], elfHeader)
	le.PutUint16(out[54:], elfSegment)
	le.PutUint16(out[56:], segments)
	segment := func(kind, flags uint32, off, size uint64) {
		s := le.AppendUint32(le.AppendUint32(nil, kind), flags)
		s = le.AppendUint64(le.AppendUint64(s, off), address+off)
		s = le.AppendUint64(le.AppendUint64(s, 0), size)
		out = append(out, append(s, make([]byte, 16)...)...)
	}
	if interp == "" {
		segment(0, 0, 0, 0)
	} else {
		segment(segInterp, 0, at+loader, uint64(len(interp)+1))
	}
	segment(segLoad, 0, 0, end)
	segment(segLoad, flagWritable, end, 100)
	segment(segDynamic, 0, at+uint64(len(names)), uint64(len(dynamic)))
	return append(append(append(out, names...), dynamic...), noise(1, 100)...)
}

// from reads from bytes.
func from(data []byte) readAtFunc {
	return func(dst []byte, off int64) error {
		if _, err := io.ReadFull(io.NewSectionReader(bytes.NewReader(data), off, int64(len(dst))), dst); err != nil {
			return estargz.ErrNotExist // as behind the end of a file
		}
		return nil
	}
}

func TestNeeded(t *testing.T) {
	data := elf("/lib64/ld.so", "$ORIGIN/../lib:/opt/lib", "libc.so.6", "libm.so.6")
	p, segments, ok := readProgram(from(data))
	require.True(t, ok)
	require.Equal(t, "/lib64/ld.so", p.interp)
	require.EqualValues(t, 62, p.machine)
	require.Equal(t, []span{{0, int64(len(data)) - 100}, {int64(len(data)) - 100, int64(len(data))}}, p.early)
	readNeeded(&p, segments, from(data))
	require.Equal(t, []string{"libc.so.6", "libm.so.6"}, p.needed)
	require.Equal(t, "$ORIGIN/../lib:/opt/lib", p.runPath)

	for n := range data[:len(data)-100] { // cut anywhere: less is found, or nothing
		if p, segments, ok := readProgram(from(data[:n])); ok {
			readNeeded(&p, segments, from(data[:n]))
			require.LessOrEqual(t, len(p.needed), 2)
		}
	}
	_, _, ok = readProgram(from([]byte("#!/bin/sh\n" + strings.Repeat("x", 100))))
	require.False(t, ok)
}

func TestNeededIsBounded(t *testing.T) {
	many := make([]string, 3*maxNeeded)
	for i := range many {
		many[i] = "lib.so"
	}
	p, segments, ok := readProgram(from(elf("", strings.Repeat("x", 2*maxName), many...)))
	require.True(t, ok)
	data := elf("", strings.Repeat("x", 2*maxName), many...)
	readNeeded(&p, segments, from(data))
	require.Len(t, p.needed, maxNeeded)
	require.Empty(t, p.runPath)
	require.Empty(t, p.interp)
}

// FuzzNeeded reads headers of any bytes.
func FuzzNeeded(f *testing.F) {
	f.Add(elf("/lib64/ld.so", "$ORIGIN", "libc.so.6"))
	f.Add(elf("", ""))
	f.Add([]byte("\x7fELF\x02\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		total := 0
		read := func(dst []byte, off int64) error {
			if total += len(dst); total > 1<<20 {
				t.Fatal("reads without a bound")
			}
			if off < 0 {
				t.Fatal("reads before the file")
			}
			return from(data)(dst, off)
		}
		p, segments, ok := readProgram(read)
		if !ok {
			return
		}
		readNeeded(&p, segments, read)
		if len(p.needed) > maxNeeded || len(p.interp) > maxName || len(p.runPath) > maxName {
			t.Fatalf("%d libraries, loader %q, path %q", len(p.needed), p.interp, p.runPath)
		}
	})
}
