package blob

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseContentRange(t *testing.T) {
	for in, want := range map[string]*contentRange{
		"bytes 0-99/1234":                {span{0, 100}, 1234},
		"bytes 5-5/6":                    {span{5, 6}, 6},
		"bytes 0-99/*":                   {span{0, 100}, -1},
		"bytes */1234":                   {span{}, 1234},
		"bytes */0":                      {span{}, 0},
		"bytes */*":                      nil,
		"":                               nil,
		"bytes":                          nil,
		"bytes 0-99":                     nil,
		"bytes 9-5/100":                  nil,
		"bytes 0-100/100":                nil,
		"bytes +1-5/100":                 nil,
		"bytes -5/100":                   nil,
		"bytes 1 - 5/100":                nil,
		"bytes 0-5/0x10":                 nil,
		"items 0-99/1234":                nil,
		"bytes 0-99/-1":                  nil,
		"bytes=0-99/1234":                nil,
		"bytes 0-99/1234 ":               nil,
		"bytes 0-9223372036854775807/*":  nil,
		"bytes 0-99999999999999999999/*": nil,
	} {
		got, err := parseContentRange(in)
		if want == nil {
			require.Error(t, err, in)
			continue
		}
		require.NoError(t, err, in)
		require.Equal(t, *want, got, in)
	}
}

func TestAnsweredBy(t *testing.T) {
	rng := func(lo, hi int64) request { return request{span: span{lo, hi}} }
	for _, tc := range []struct {
		r  request
		cr contentRange
		ok bool
	}{
		{rng(0, 100), contentRange{span{0, 100}, 1000}, true},
		{rng(0, 100), contentRange{span{0, 100}, 100}, true},
		{rng(0, 100), contentRange{span{0, 50}, 50}, true}, // the blob is shorter
		{rng(0, 100), contentRange{span{0, 50}, 1000}, false},
		{rng(0, 100), contentRange{span{0, 101}, 1000}, false},
		{rng(0, 100), contentRange{span{1, 100}, 1000}, false},
		{rng(0, 100), contentRange{span{}, 1000}, false},
		{rng(0, 100), contentRange{span{0, 100}, -1}, true},
		{rng(0, 100), contentRange{span{0, 50}, -1}, false},
		{rng(10, unknownEnd), contentRange{span{10, 50}, 50}, true},
		{request{suffix: 10}, contentRange{span{90, 100}, 100}, true},
		{request{suffix: 10}, contentRange{span{0, 5}, 5}, true},
		{request{suffix: 10}, contentRange{span{89, 100}, 100}, false},
		{request{suffix: 10}, contentRange{span{90, 99}, 100}, false},
		{request{suffix: 10}, contentRange{span{90, 100}, -1}, false},
	} {
		require.Equal(t, tc.ok, tc.r.answeredBy(tc.cr), "%s by %v", tc.r.header(), tc.cr)
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-99/1234", "bytes 0-0/*", "bytes */5", "bytes 9-1/10", "bytes 0-9223372036854775806/9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cr, err := parseContentRange(s)
		if err != nil {
			return
		}
		require.GreaterOrEqual(t, cr.lo, int64(0))
		require.GreaterOrEqual(t, cr.hi, cr.lo)
		if cr.total >= 0 {
			require.LessOrEqual(t, cr.hi, cr.total)
		}
		if cr.empty() {
			return
		}
		total := "*"
		if cr.total >= 0 {
			total = fmt.Sprint(cr.total)
		}
		again, err := parseContentRange(fmt.Sprintf("bytes %d-%d/%s", cr.lo, cr.hi-1, total))
		require.NoError(t, err)
		require.Equal(t, cr, again)
	})
}
