package cache

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	bksession "github.com/moby/buildkit/session"
)

// keyFileList is where BuildKit keeps a layer's list of files.
const keyFileList = "filelist"

// FileList implements bkcache.ImmutableRef: the names in the layer's tar, sorted,
// with the whiteouts of AUFS. The list is empty for a record without a blob; a lazy
// blob is fetched for it.
func (h *immutableRef) FileList(ctx context.Context, s bksession.Group) ([]string, error) {
	return h.m.files.Do(ctx, h.ID(), func(ctx context.Context) (files []string, err error) {
		if raw, err := h.GetExternal(keyFileList); err == nil && raw != nil {
			if err := json.Unmarshal(raw, &files); err != nil {
				return nil, fmt.Errorf("list of files of record %s: %w", h.ID(), err)
			}
			return files, nil
		}
		if keyBlob.get(h.meta) == "" {
			return nil, nil
		}
		if err := h.m.localBlob(ctx, h.ref, h.record, s); err != nil {
			return nil, err
		}
		if files, err = h.readFileList(ctx); err != nil {
			return nil, fmt.Errorf("list of files of record %s: %w", h.ID(), err)
		}
		raw, err := json.Marshal(files)
		if err != nil {
			return nil, fmt.Errorf("list of files of record %s: %w", h.ID(), err)
		}
		return files, h.SetExternal(keyFileList, raw)
	})
}

func (h *immutableRef) readFileList(ctx context.Context) (files []string, rerr error) {
	desc, err := h.record.descriptor(ctx, h.handlers, false)
	if err != nil {
		return nil, err
	}
	ra, err := h.m.content.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer func() { rerr = errors.Join(rerr, ra.Close()) }()
	r, err := compression.DecompressStream(io.NewSectionReader(ra, 0, ra.Size()))
	if err != nil {
		return nil, err
	}
	defer func() { rerr = errors.Join(rerr, r.Close()) }()
	for tr := tar.NewReader(r); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			slices.Sort(files)
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		files = append(files, path.Clean(hdr.Name))
	}
}
