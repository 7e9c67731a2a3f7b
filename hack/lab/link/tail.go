package link

import (
	"strconv"
	"strings"
)

// Tail says where a layer's contents end and its table of contents begins.
type Tail struct {
	TOC  int64 `json:"toc"`  // offset of the table of contents
	Size int64 `json:"size"` // of the whole blob
}

// probe is the most bytes of a request that only asks whether a blob is there:
// stargz-snapshotter follows redirects with the first two.
const probe = 2

// isData says whether a GET with this Range header is for a layer's contents, and
// not for its table of contents, its footer, or a look whether it is there. A range
// with some of both is for what most of it is: the last bytes of a blob are asked
// for before it is known where the table begins. The zero Tail is that of a layer
// without a table. A header that a server would ignore stands for the whole blob.
func isData(header string, t Tail) bool {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok {
		return true
	}
	var data, rest int64
	for part := range strings.SplitSeq(spec, ",") {
		from, to, ok := parseRange(strings.TrimSpace(part), t.Size)
		if !ok {
			return true
		}
		below := to - from
		if t.Size > 0 {
			below = max(0, min(to, t.TOC)-from)
		}
		data += below
		rest += to - from - below
	}
	return data > probe && data >= rest
}

// parseRange reads one range of a header, for a blob of size bytes (0 is unknown).
// The end is exclusive.
func parseRange(s string, size int64) (from, to int64, ok bool) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, false
	}
	end := size
	if end == 0 {
		end = 1 << 62
	}
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		return max(0, end-n), end, err == nil && n > 0
	}
	from, err := strconv.ParseInt(first, 10, 64)
	if err != nil || from < 0 {
		return 0, 0, false
	}
	if last == "" {
		return from, end, from < end
	}
	to, err = strconv.ParseInt(last, 10, 64)
	return from, min(to+1, end), err == nil && from <= to && from < end
}
