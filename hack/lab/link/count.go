package link

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob is what was asked of one blob.
type Blob struct {
	Gets   int      `json:"gets"`
	Heads  int      `json:"heads"`
	Bytes  int64    `json:"bytes"`            // of response bodies
	Ranges []string `json:"ranges,omitempty"` // Range headers of the GETs in order, "" for a whole blob
}

// Stats is what a registry was asked for.
type Stats struct {
	Requests      int             `json:"requests"` // all of them
	Manifests     int             `json:"manifests"`
	ManifestHeads int             `json:"manifest_heads"`
	Configs       int             `json:"configs"`     // GET and HEAD of image configs
	LayerGets     int             `json:"layer_gets"`  // GET of blobs that a manifest names as layers, or of unknown ones
	LayerHeads    int             `json:"layer_heads"` // HEAD of the same
	DataGets      int             `json:"data_gets"`   // those of LayerGets that are for contents, not for a table of contents or a footer
	DataSpan      time.Duration   `json:"data_span"`   // from the first of DataGets to the last, as they were due by the link
	Other         int             `json:"other"`       // version checks, tags, uploads, ...
	Failed        int             `json:"failed"`      // responses with a status of 400 and above, among the others
	Pushes        int             `json:"pushes"`      // POST, PATCH and PUT, among the others
	PushedBytes   int64           `json:"pushed"`      // of the bodies of Pushes
	LayerBytes    int64           `json:"layer_bytes"` // of the bodies of LayerGets
	DataBytes     int64           `json:"data_bytes"`  // of the bodies of DataGets
	Bytes         int64           `json:"bytes"`       // of all bodies
	Blobs         map[string]Blob `json:"blobs"`       // by digest
}

// OtherRequests is how many requests were not for a layer's bytes.
func (s Stats) OtherRequests() int { return s.Requests - s.LayerGets }

// Counter passes requests on and counts them.
type Counter struct {
	next http.Handler

	mu struct {
		sync.Mutex
		stats   Stats
		configs map[string]bool // digests that manifests seen so far name as configs
		tails   map[string]Tail // by digest of a layer
		first   time.Time       // of the DataGets
		last    time.Time
	}
}

// NewCounter counts what next is asked for.
func NewCounter(next http.Handler) *Counter {
	c := &Counter{next: next}
	c.mu.configs, c.mu.tails = map[string]bool{}, map[string]Tail{}
	c.Reset()
	return c
}

// Stats returns a copy of the counts since the last Reset. Bodies that are on
// their way count as far as they were written.
func (c *Counter) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.mu.stats
	s.Blobs = maps.Clone(s.Blobs)
	for d, b := range s.Blobs {
		b.Ranges = slices.Clone(b.Ranges)
		s.Blobs[d] = b
	}
	return s
}

// Reset starts the counts anew.
func (c *Counter) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.stats = Stats{Blobs: map[string]Blob{}}
}

// ServeHTTP implements http.Handler.
func (c *Counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, dgst, data := c.request(r)
	counted := &response{ResponseWriter: w, c: c, layer: kind == layerKind && r.Method == http.MethodGet, data: data, dgst: dgst}
	if kind == manifestKind && r.Method == http.MethodGet {
		counted.body = new([]byte)
	}
	if r.Body != nil {
		r.Body = &requestBody{r.Body, c}
	}
	c.next.ServeHTTP(counted, r)
	if counted.body != nil {
		c.manifest(*counted.body)
	}
}

type kind int

const (
	otherKind kind = iota
	manifestKind
	configKind
	layerKind
)

// request counts the request itself. data says that it is for a layer's contents.
func (c *Counter) request(r *http.Request) (k kind, dgst string, data bool) {
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	parts := strings.Split(r.URL.Path, "/")
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.mu.stats
	s.Requests++
	if n := len(parts); read && n > 3 && parts[1] == "v2" {
		switch parts[n-2] {
		case "manifests":
			k = manifestKind
		case "blobs":
			k, dgst = layerKind, parts[n-1]
			if c.mu.configs[dgst] {
				k = configKind
			}
		}
	}
	switch r.Method {
	case http.MethodPost, http.MethodPatch, http.MethodPut:
		s.Pushes++
	}
	head := r.Method == http.MethodHead
	switch {
	case k == manifestKind && head:
		s.ManifestHeads++
	case k == manifestKind:
		s.Manifests++
	case k == configKind:
		s.Configs++
	case k == layerKind && head:
		s.LayerHeads++
	case k == layerKind:
		s.LayerGets++
		if data = isData(r.Header.Get("Range"), c.mu.tails[dgst]); data {
			c.dataLocked(arrived(r))
		}
	default:
		s.Other++
	}
	if dgst != "" {
		b := s.Blobs[dgst]
		if head {
			b.Heads++
		} else {
			b.Gets++
			b.Ranges = append(b.Ranges, r.Header.Get("Range"))
		}
		s.Blobs[dgst] = b
	}
	return k, dgst, data
}

// dataLocked counts a request for a layer's contents. c.mu is held.
func (c *Counter) dataLocked(at time.Time) {
	if c.mu.stats.DataGets == 0 {
		c.mu.first, c.mu.last = at, at
	}
	if at.Before(c.mu.first) {
		c.mu.first = at
	}
	if at.After(c.mu.last) {
		c.mu.last = at
	}
	c.mu.stats.DataGets++
	c.mu.stats.DataSpan = c.mu.last.Sub(c.mu.first)
}

// manifest learns which blob is a config from a manifest's body.
func (c *Counter) manifest(body []byte) {
	var m ocispecs.Manifest
	if json.Unmarshal(body, &m) != nil || m.Config.Digest == "" {
		return
	}
	c.AddConfig(m.Config.Digest)
}

// AddConfig names a blob that is an image's config and not a layer.
func (c *Counter) AddConfig(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.configs[d.String()] = true
}

// AddTails says, by digest, where tables of contents begin. A layer that is not
// named has none.
func (c *Counter) AddTails(tails map[string]Tail) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(c.mu.tails, tails)
}

// requestBody counts the bytes of what is pushed.
type requestBody struct {
	io.ReadCloser
	c *Counter
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.c.mu.Lock()
	b.c.mu.stats.PushedBytes += int64(n)
	b.c.mu.Unlock()
	return n, err
}

// response counts the bytes of a body, and keeps a manifest's.
type response struct {
	http.ResponseWriter
	c     *Counter
	layer bool
	data  bool
	dgst  string
	body  *[]byte
}

func (r *response) WriteHeader(status int) {
	if status >= 400 {
		r.c.mu.Lock()
		r.c.mu.stats.Failed++
		r.c.mu.Unlock()
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *response) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.c.mu.Lock()
	s := &r.c.mu.stats
	s.Bytes += int64(n)
	if r.layer {
		s.LayerBytes += int64(n)
	}
	if r.data {
		s.DataBytes += int64(n)
	}
	if r.dgst != "" {
		b := s.Blobs[r.dgst]
		b.Bytes += int64(n)
		s.Blobs[r.dgst] = b
	}
	r.c.mu.Unlock()
	const maxManifest = 4 << 20
	if r.body != nil && len(*r.body) < maxManifest {
		*r.body = append(*r.body, p[:n]...)
	}
	return n, err
}

// ReadFrom copies with a buffer that fits the link's rates, through Write.
func (r *response) ReadFrom(src io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{r}, src, make([]byte, 64<<10))
}

// Flush implements http.Flusher for a reverse proxy.
func (r *response) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}
