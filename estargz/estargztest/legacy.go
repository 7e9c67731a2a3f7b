package estargztest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
)

// writeLegacy writes stargz as crfs defined it: a gzip member for each chunk,
// digests of whole files only, and the 47-byte footer.
func writeLegacy(w *countingWriter, plain io.Reader, opts Options, diff io.Writer) error {
	l := &legacyWriter{w: w, level: opts.Level, diff: diff}
	if l.level == 0 {
		l.level = gzip.DefaultCompression
	}
	tr := tar.NewReader(plain)
	toc := jtoc{Version: 1}
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		entries, err := l.add(hdr, tr, chunkSizeOf(opts))
		if err != nil {
			return fmt.Errorf("%q: %w", hdr.Name, err)
		}
		toc.Entries = append(toc.Entries, entries...)
	}
	// The rest of the tar is its end, which the TOC's own tar provides.
	if _, err := io.Copy(io.Discard, plain); err != nil {
		return err
	}
	return l.close(&toc)
}

type legacyWriter struct {
	w     *countingWriter
	level int
	zw    *gzip.Writer
	diff  io.Writer // gets what the members decompress to
}

// member writes one gzip member and returns where it begins.
func (l *legacyWriter) member(write func(io.Writer) error) (int64, error) {
	at := l.w.n
	if l.zw == nil {
		var err error
		if l.zw, err = gzip.NewWriterLevel(l.w, l.level); err != nil {
			return 0, err
		}
	}
	l.zw.Reset(l.w)
	if err := write(io.MultiWriter(l.zw, l.diff)); err != nil {
		return 0, err
	}
	return at, l.zw.Close()
}

// add writes an entry: its header in one member, each chunk in another.
func (l *legacyWriter) add(hdr *tar.Header, data io.Reader, chunk int64) ([]*jentry, error) {
	e, err := newJentry(hdr, time.RFC3339)
	if err != nil {
		return nil, err
	}
	if _, err := l.member(func(w io.Writer) error { return tar.NewWriter(w).WriteHeader(hdr) }); err != nil {
		return nil, err
	}
	entries := []*jentry{e}
	sum := sha256.New()
	for done := int64(0); done < e.Size; {
		n := min(chunk, e.Size-done)
		at, err := l.member(func(w io.Writer) error {
			_, err := io.CopyN(io.MultiWriter(w, sum), data, n)
			return err
		})
		if err != nil {
			return nil, err
		}
		c := e
		if done > 0 {
			c = &jentry{Type: "chunk", Name: e.Name, ChunkOffset: done}
			entries = append(entries, c)
		}
		c.Offset = at
		if done += n; done < e.Size {
			c.ChunkSize = n // a last chunk goes to the end of the file
		}
	}
	if hdr.Typeflag == tar.TypeReg {
		e.Digest = digest.NewDigest(digest.SHA256, sum).String()
	}
	_, err = l.member(func(w io.Writer) error {
		_, err := w.Write(make([]byte, -e.Size&511))
		return err
	})
	return entries, err
}

func (l *legacyWriter) close(toc *jtoc) error {
	doc, err := json.MarshalIndent(toc, "", "\t")
	if err != nil {
		return err
	}
	at, err := l.member(func(w io.Writer) error { return writeTOCTar(w, doc) })
	if err != nil {
		return err
	}
	_, err = l.w.Write(LegacyFooter(at))
	return err
}

// writeTOCTar wraps a TOC's document as the gzip formats do.
func writeTOCTar(w io.Writer, doc []byte) error {
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: int64(len(doc))}); err != nil {
		return err
	}
	if _, err := tw.Write(doc); err != nil {
		return err
	}
	return tw.Close()
}

// LegacyFooter is the footer of a legacy stargz whose TOC is at offset toc.
func LegacyFooter(toc int64) []byte {
	extra := fmt.Appendf(nil, "%016xSTARGZ", toc)
	return emptyMember(extra)
}

// Footer is the footer of an eStargz whose TOC is at offset toc.
func Footer(toc int64) []byte {
	value := fmt.Appendf(nil, "%016xSTARGZ", toc)
	extra := binary.LittleEndian.AppendUint16([]byte("SG"), uint16(len(value)))
	return emptyMember(append(extra, value...))
}

// emptyMember is a gzip member without contents, with an Extra field.
func emptyMember(extra []byte) []byte {
	var b bytes.Buffer
	b.Write([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff})
	b.Write(binary.LittleEndian.AppendUint16(nil, uint16(len(extra))))
	b.Write(extra)
	b.Write([]byte{1, 0, 0, 0xff, 0xff}) // a last, stored block of no bytes
	b.Write(make([]byte, 8))             // CRC and size of nothing
	return b.Bytes()
}

// RawLayer makes an eStargz of a given TOC document, for hostile ones: payload
// is what comes before the TOC. Nothing is checked.
func RawLayer(payload, doc []byte) (Layer, error) {
	var b bytes.Buffer
	b.Write(payload)
	zw := gzip.NewWriter(&b)
	if err := writeTOCTar(zw, doc); err != nil {
		return Layer{}, err
	}
	if err := zw.Close(); err != nil {
		return Layer{}, err
	}
	b.Write(Footer(int64(len(payload))))
	toc := digest.FromBytes(doc)
	return Layer{
		Blob: b.Bytes(),
		Converted: Converted{
			Digest: digest.FromBytes(b.Bytes()), Size: int64(b.Len()), TOCDigest: toc,
			Annotations: map[string]string{AnnotationTOCDigest: toc.String()},
		},
	}, nil
}
