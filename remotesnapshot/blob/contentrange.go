package blob

import (
	"fmt"
	"strconv"
	"strings"
)

// contentRange is a parsed Content-Range header (RFC 9110, section 14.4).
type contentRange struct {
	span        // empty when unsatisfied
	total int64 // -1: not told
}

// parseContentRange reads "bytes 0-99/1234", "bytes 0-99/*" and, when the range
// was not satisfied, "bytes */1234". Only plain digits are numbers.
func parseContentRange(s string) (contentRange, error) {
	bad := func() (contentRange, error) {
		return contentRange{}, fmt.Errorf("bad Content-Range %.64q", s)
	}
	rest, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return bad()
	}
	pair, total, ok := strings.Cut(rest, "/")
	if !ok {
		return bad()
	}
	cr := contentRange{total: -1}
	if total != "*" {
		n, ok := parseDigits(total)
		if !ok {
			return bad()
		}
		cr.total = n
	}
	if pair == "*" {
		if cr.total < 0 {
			return bad()
		}
		return cr, nil
	}
	first, last, ok := strings.Cut(pair, "-")
	if !ok {
		return bad()
	}
	lo, ok1 := parseDigits(first)
	hi, ok2 := parseDigits(last)
	if !ok1 || !ok2 || hi < lo || hi+1 < 0 || (cr.total >= 0 && hi >= cr.total) {
		return bad()
	}
	cr.span = span{lo, hi + 1}
	return cr, nil
}

func parseDigits(s string) (int64, bool) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// request is what one request asks for: the last suffix bytes, or a span.
type request struct {
	span
	suffix int64
}

// header is the value of the Range header, and the name in messages.
func (r request) header() string {
	if r.suffix > 0 {
		return fmt.Sprintf("bytes=-%d", r.suffix)
	}
	if r.hi == unknownEnd {
		return fmt.Sprintf("bytes=%d-", r.lo)
	}
	return fmt.Sprintf("bytes=%d-%d", r.lo, r.hi-1)
}

// answeredBy says whether cr is exactly what r asked for. A server may shorten a
// range at the end of the blob and nowhere else.
func (r request) answeredBy(cr contentRange) bool {
	switch {
	case cr.empty(), cr.total >= 0 && cr.hi > cr.total:
		return false
	case r.suffix > 0:
		return cr.total >= 0 && cr.hi == cr.total && cr.lo == max(0, cr.total-r.suffix)
	case cr.lo != r.lo:
		return false
	case cr.hi == r.hi:
		return true
	}
	return cr.hi < r.hi && cr.hi == cr.total
}
