package estargztest

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// writeStorage writes zstd:chunked with the features that containers/storage
// uses and stargz-snapshotter's writer does not: frames that hold nothing but a
// chunk, chunks of zeros, endOffset, nanoseconds, tar-split data between the TOC
// and a 64-byte footer. Its chunks are of one size, not cut by content.
func writeStorage(w *countingWriter, plain io.Reader, opts Options, annotations map[string]string) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	s := &storageWriter{w: w, enc: enc, chunk: chunkSizeOf(opts)}
	// What lies between the data of files: headers and padding. The tar is taken
	// apart through a copy of what the reader consumed.
	var raw bytes.Buffer
	tr := tar.NewReader(io.TeeReader(plain, &raw))
	toc := jtoc{Version: 1, TarSplitDigest: digest.FromString(tarSplit)}
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := s.frame(raw.Bytes()); err != nil {
			return err
		}
		raw.Reset()
		entries, err := s.add(hdr, tr)
		if err != nil {
			return fmt.Errorf("%q: %w", hdr.Name, err)
		}
		raw.Reset()
		toc.Entries = append(toc.Entries, entries...)
	}
	if _, err := io.Copy(&raw, plain); err != nil {
		return err
	}
	if err := s.frame(raw.Bytes()); err != nil {
		return err
	}
	return s.close(&toc, annotations)
}

// tarSplit stands for tar-split data, which no reader of ours looks at.
const tarSplit = "tar-split data would be here"

type storageWriter struct {
	w     *countingWriter
	enc   *zstd.Encoder
	chunk int64
}

// frame writes one zstd frame; nothing for no bytes.
func (s *storageWriter) frame(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	s.enc.Reset(s.w)
	if _, err := s.enc.Write(b); err != nil {
		return err
	}
	return s.enc.Close()
}

func (s *storageWriter) add(hdr *tar.Header, data io.Reader) ([]*jentry, error) {
	e, err := newJentry(hdr, time.RFC3339Nano)
	if err != nil {
		return nil, err
	}
	entries := []*jentry{e}
	if e.Size == 0 {
		return entries, nil
	}
	whole := digest.SHA256.Digester()
	e.Offset = s.w.n
	buf := make([]byte, min(s.chunk, e.Size))
	for done := int64(0); done < e.Size; {
		part := buf[:min(s.chunk, e.Size-done)]
		if _, err := io.ReadFull(data, part); err != nil {
			return nil, err
		}
		whole.Hash().Write(part)
		c := e
		if done > 0 {
			c = &jentry{Type: "chunk", Name: e.Name, ChunkOffset: done, Offset: s.w.n}
			entries = append(entries, c)
		}
		if int64(len(part)) < e.Size {
			c.ChunkSize, c.ChunkDigest = int64(len(part)), digest.FromBytes(part).String()
			if len(bytes.Trim(part, "\x00")) == 0 {
				c.ChunkType = "zeros"
			}
		}
		if err := s.frame(part); err != nil {
			return nil, err
		}
		done += int64(len(part))
	}
	e.Digest, e.EndOffset = whole.Digest().String(), s.w.n
	return entries, nil
}

// skippable writes b so that zstd decoders pass over it, and returns where b is.
func (s *storageWriter) skippable(b []byte) (int64, error) {
	head := binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, uint32(len(b)))
	if _, err := s.w.Write(head); err != nil {
		return 0, err
	}
	at := s.w.n
	_, err := s.w.Write(b)
	return at, err
}

func (s *storageWriter) close(toc *jtoc, annotations map[string]string) error {
	doc, err := json.Marshal(toc)
	if err != nil {
		return err
	}
	compressed := s.enc.EncodeAll(doc, nil)
	at, err := s.skippable(compressed)
	if err != nil {
		return err
	}
	split, err := s.skippable([]byte(tarSplit))
	if err != nil {
		return err
	}
	annotations[AnnotationStorageChecksum] = digest.FromBytes(compressed).String()
	annotations[AnnotationStoragePosition] = fmt.Sprintf("%d:%d:%d:1", at, len(compressed), len(doc))
	var footer []byte
	for _, n := range []int64{at, int64(len(compressed)), int64(len(doc)), 1, split, int64(len(tarSplit)), 1000} {
		footer = binary.LittleEndian.AppendUint64(footer, uint64(n))
	}
	_, err = s.skippable(append(footer, "GNUlInUx"...))
	return err
}
