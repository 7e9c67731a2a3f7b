package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
)

// Limits of what a Patient registry is asked for.
const (
	defaultResolveTimeout = time.Minute
	// headTime bounds the wait for an answer's header, and then the wait for each
	// paceBytes of its body.
	headTime  = 10 * time.Second
	paceBytes = 1 << 10
	// maxDocument is the size up to which an answer is read as a whole before its
	// reader sees a byte. Manifests are limited to 4 MiB by the registries.
	maxDocument = 8 << 20
	// nameTime is how long a name is asked for that can't be resolved: mostly it is a
	// typing mistake or a machine without a network, and sometimes a resolver that has
	// just started.
	nameTime      = 10 * time.Second
	retryAfterMax = 30 * time.Second
)

// Patient makes requests for manifests, configs of images, tokens and whole blobs
// survive a registry that is out of order for a while: they are made again until limit
// is over (0: 1 minute, below 0: not at all). Who asks for the same afterwards, as
// BuildKit does, gets what is left of blobLimit for a blob (0: 5 minutes), and else
// one try, until there was an answer or nobody asked for half a minute. Of several hosts only the last, which is the registry
// itself, is waited for; behind a mirror that fails there is another host. Such
// answers are checked by their digests before anybody sees them, and asked for again
// when they are wrong. Requests for ranges, and those that change something, pass
// as they are: package blob has its own patience. Of all requests, a token that has
// ended is said to have, so that it is renewed.
func Patient(hosts docker.RegistryHosts, limit, blobLimit time.Duration) docker.RegistryHosts {
	if limit == 0 {
		limit = defaultResolveTimeout
	}
	if blobLimit == 0 {
		blobLimit = blob.DefaultGiveUp
	}
	accepted, out := new(tokens), new(outages)
	return func(name string) ([]docker.RegistryHost, error) {
		all, err := hosts(name)
		for i := range all {
			client := http.Client{}
			if c := all[i].Client; c != nil {
				client = *c
			}
			next := client.Transport
			if next == nil {
				next = http.DefaultTransport
			}
			p := &patient{next: next, tokens: accepted, outages: out}
			if i == len(all)-1 {
				p.limit, p.blobLimit = limit, max(limit, blobLimit)
			}
			client.Transport = p
			all[i].Client = &client
		}
		return all, err
	}
}

// patient is a transport that asks again.
type patient struct {
	next      http.RoundTripper
	tokens    *tokens
	outages   *outages
	limit     time.Duration // from the first try to the beginning of the last one
	blobLimit time.Duration // the same of all requests for a blob together
}

// RoundTrip implements http.RoundTripper.
func (p *patient) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	if isDocument(req) {
		resp, err = p.document(req)
	} else {
		resp, err = p.next.RoundTrip(req)
	}
	if err == nil {
		resp = p.refused(req, resp)
	}
	return resp, err
}

// document asks for something small until it is there.
func (p *patient) document(req *http.Request) (*http.Response, error) {
	start, pause := time.Now(), 100*time.Millisecond
	address := req.URL.Host + req.URL.Path
	limit := p.left(req, p.outages.passed(address, start))
	for {
		resp, err := p.try(req)
		wait, again := p.again(resp, err, time.Since(start))
		wait = max(wait, pause)
		switch {
		case !again:
			p.outages.ended(address)
			return resp, err
		case req.Context().Err() != nil:
			return resp, err
		case time.Since(start)+wait > limit:
			p.outages.failed(address, start, time.Now())
			return resp, err
		}
		if resp != nil {
			resp.Body.Close()
		}
		select {
		case <-time.After(wait):
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// left is how long a request is made again that was made in vain for passed.
func (p *patient) left(req *http.Request, passed time.Duration) time.Duration {
	if passed == 0 {
		return p.limit
	}
	whole := p.limit
	if isBlob(req) {
		whole = p.blobLimit
	}
	return min(p.limit, whole-passed)
}

func isBlob(req *http.Request) bool { return strings.Contains(req.URL.Path, "/blobs/") }

// isDocument says whether a request is for something small that can be asked for twice.
func isDocument(req *http.Request) bool {
	read := req.Method == http.MethodGet || req.Method == http.MethodHead
	if !read || req.Header.Get("Range") != "" || req.Body != nil && req.Body != http.NoBody {
		return false
	}
	return !isBlob(req) || req.Method == http.MethodGet
}

// again says whether another try may have another end, and how long to wait for it.
func (p *patient) again(resp *http.Response, err error, passed time.Duration) (wait time.Duration, _ bool) {
	if err != nil {
		var unresolved *net.DNSError
		return 0, !errors.As(err, &unresolved) || passed < nameTime
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusInternalServerError, http.StatusNotImplemented, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return 0, false
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		wait = min(time.Duration(min(s, 3600))*time.Second, retryAfterMax)
	}
	return wait, true
}

// try sends the request once. The body of a document is read and checked; it is an
// error when it breaks off, is wrong, or does not come.
func (p *patient) try(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	late := time.AfterFunc(headTime, func() { cancel(errors.New("no answer in time")) })
	resp, err := p.next.RoundTrip(req.Clone(ctx))
	if err != nil {
		late.Stop()
		err = causeOf(ctx, req, err)
		cancel(nil)
		return nil, err
	}
	if req.Method == http.MethodHead || resp.ContentLength > maxDocument || resp.StatusCode != http.StatusOK {
		late.Stop()
		resp.Body = &cancelledBody{resp.Body, cancel}
		return resp, nil
	}
	body, whole, err := readDocument(resp.Body, late)
	if err == nil && whole {
		err = checkDocument(req, resp, body)
	}
	switch {
	case err != nil:
		late.Stop()
		err = causeOf(ctx, req, err)
		resp.Body.Close()
		cancel(nil)
		return nil, err
	case whole:
		late.Stop()
		resp.Body.Close()
		cancel(nil)
		resp.Body = io.NopCloser(bytes.NewReader(body))
	default: // of unknown length, and large
		resp.Body = &cancelledBody{struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), resp.Body), resp.Body}, cancel}
	}
	return resp, nil
}

// causeOf says why an attempt ended, without the credentials that an address may hold.
func causeOf(ctx context.Context, req *http.Request, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("%s: %w", req.URL.Host, err)
}

// cancelledBody ends the request's context with the body.
type cancelledBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancelledBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// readDocument reads a body, or so much of it as a document may have. late is
// put off for as long as bytes come at some pace.
func readDocument(r io.Reader, late *time.Timer) (body []byte, whole bool, err error) {
	late.Reset(headTime)
	buf := make([]byte, 32<<10)
	for seen := 0; len(body) <= maxDocument; {
		n, err := r.Read(buf)
		body = append(body, buf[:n]...)
		if err == io.EOF {
			return body, true, nil
		}
		if err != nil {
			return nil, false, err
		}
		if len(body)-seen >= paceBytes {
			seen = len(body)
			late.Reset(headTime)
		}
	}
	late.Stop()
	return body, false, nil
}

// checkDocument compares a body with the digest that it was asked for by, or else
// with the one that the answer names.
func checkDocument(req *http.Request, resp *http.Response, body []byte) error {
	dgst, err := digest.Parse(path.Base(req.URL.Path))
	if err != nil {
		dgst, err = digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	}
	if err != nil || resp.Uncompressed || resp.Header.Get("Content-Encoding") != "" {
		return nil // it has none, or it is of other bytes
	}
	v := dgst.Verifier()
	v.Write(body) // a hash takes everything
	if !v.Verified() {
		return fmt.Errorf("%d bytes that do not have the digest %s", len(body), dgst)
	}
	return nil
}
