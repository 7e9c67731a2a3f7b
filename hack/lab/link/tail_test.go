package link

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestIsData(t *testing.T) {
	tail := Tail{TOC: 1000, Size: 1500}
	for _, tc := range []struct {
		name, header string
		tail         Tail
		want         bool
	}{
		{"the whole blob", "", tail, true},
		{"contents", "bytes=0-99", tail, true},
		{"contents to the table", "bytes=900-999", tail, true},
		{"the table", "bytes=1000-1448", tail, false},
		{"the footer", "bytes=1449-1499", tail, false},
		{"a suffix", "bytes=-51", tail, false},
		{"a tail that begins before the table", "bytes=900-1499", tail, false},
		{"a suffix that is the whole blob", "bytes=-1500", tail, true},
		{"all from an offset", "bytes=10-", tail, true},
		{"a look at the first two bytes", "bytes=0-1", tail, false},
		{"several ranges of contents", "bytes=0-9, 50-59", tail, true},
		{"several ranges, most of the table", "bytes=0-9,1000-1100", tail, false},
		{"another unit", "lines=1-2", tail, true},
		{"not a range", "bytes=x", tail, true},
		{"no table", "bytes=1000-1100", Tail{}, true},
		{"a suffix without a table", "bytes=-100", Tail{}, true},
		{"a look, without a table", "bytes=0-1", Tail{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) { require.Equal(t, tc.want, isData(tc.header, tc.tail)) })
	}
}

func TestDataRequestsAreCountedApart(t *testing.T) {
	counter := NewCounter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "12345") }))
	counter.AddTails(map[string]Tail{"sha256:aa": {TOC: 1000, Size: 1500}})
	get := func(ranges string) {
		r := httptest.NewRequest(http.MethodGet, "/v2/base/blobs/sha256:aa", nil)
		r.Header.Set("Range", ranges)
		counter.ServeHTTP(httptest.NewRecorder(), r)
	}
	get("bytes=-51")
	get("bytes=0-4")
	time.Sleep(5 * time.Millisecond)
	get("bytes=10-14")
	s := counter.Stats()
	require.Equal(t, 3, s.LayerGets)
	require.Equal(t, 2, s.DataGets)
	require.EqualValues(t, 15, s.LayerBytes)
	require.EqualValues(t, 10, s.DataBytes)
	require.GreaterOrEqual(t, s.DataSpan, 5*time.Millisecond)
	require.Less(t, s.DataSpan, time.Minute)
	counter.Reset()
	require.Zero(t, counter.Stats().DataSpan)
	get("bytes=0-4")
	require.Zero(t, counter.Stats().DataSpan, "one request has no span")
}
