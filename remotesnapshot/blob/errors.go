package blob

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// statusError is an answer that does not deliver the bytes.
type statusError struct {
	code       int
	retryAfter time.Duration
	body       string // the first bytes of it
}

func (e *statusError) Error() string {
	msg := fmt.Sprintf("status %d %s", e.code, http.StatusText(e.code))
	if e.body != "" {
		msg += ": " + e.body
	}
	return msg
}

// Unwrap gives the answer its class.
func (e *statusError) Unwrap() error {
	switch e.code {
	case http.StatusNotFound, http.StatusGone:
		return errdefs.ErrNotFound
	case http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case http.StatusTooManyRequests:
		return errdefs.ErrResourceExhausted
	}
	return errdefs.ErrUnavailable
}

// unsatisfiedError is the answer 416 with the size of the blob.
type unsatisfiedError struct {
	status *statusError
	total  int64
}

func (e *unsatisfiedError) Error() string { return e.status.Error() }
func (e *unsatisfiedError) Unwrap() error { return e.status }

// authError is a failure to get credentials that the registry accepts.
type authError struct {
	err     error
	refused bool // by who gives the credentials, rather than a fault on the way
}

func (e *authError) Error() string { return "authorize: " + e.err.Error() }

func (e *authError) Unwrap() []error {
	if e.refused {
		return []error{e.err, errdefs.ErrUnauthenticated}
	}
	return []error{e.err}
}

func newAuthError(err error) error {
	var us remoteserrors.ErrUnexpectedStatus
	refused := errors.Is(err, docker.ErrInvalidAuthorization) || errors.Is(err, auth.ErrNoToken)
	if errors.As(err, &us) {
		refused = us.StatusCode == http.StatusUnauthorized || us.StatusCode == http.StatusForbidden || us.StatusCode == http.StatusBadRequest
	}
	return &authError{err, refused}
}

// lasting says that asking again is unlikely to change the answer.
func lasting(err error) bool {
	var se *statusError
	if !errors.As(err, &se) {
		var ae *authError
		if errors.As(err, &ae) {
			return ae.refused
		}
		return errors.Is(err, errNoHosts) || errors.Is(err, errDisk)
	}
	switch se.code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests, http.StatusRequestedRangeNotSatisfiable:
		return false
	}
	return se.code >= 400 && se.code < 500
}

// newStatusError reads what is useful of resp and closes its body.
func newStatusError(resp *http.Response, capAfter time.Duration) *statusError {
	defer resp.Body.Close()
	e := &statusError{code: resp.StatusCode}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 256))
	e.body = strings.ToValidUTF8(strings.Join(strings.Fields(string(b)), " "), "?")
	if v := resp.Header.Get("Retry-After"); v != "" {
		if s, err := strconv.Atoi(v); err == nil {
			e.retryAfter = time.Duration(min(max(s, 0), 3600)) * time.Second
		} else if t, err := http.ParseTime(v); err == nil {
			e.retryAfter = max(0, time.Until(t))
		}
		e.retryAfter = min(e.retryAfter, capAfter)
	}
	return e
}

var (
	errNoHosts = errors.New("no host to ask")
	errDisk    = errors.New("can't write to the store")
	errCovered = errors.New("another request brings these bytes")
	errAgain   = errors.New("ask the same host differently")
	errUnused  = errors.New("nobody waits for these bytes")
)

// attempts remembers the last error of each host, for the message of the fetch
// that gives up.
type attempts struct {
	hosts []string
	errs  map[string]error
	n     int
}

func (a *attempts) add(host string, err error) {
	if a.errs == nil {
		a.errs = map[string]error{}
	}
	if _, ok := a.errs[host]; !ok {
		a.hosts = append(a.hosts, host)
	}
	a.errs[host] = err
	a.n++
}

// fetchError is why a range could not be had.
type fetchError struct {
	blob string
	what string
	n    int
	errs []error // one for each host
}

func (a *attempts) err(blob, what string) error {
	e := &fetchError{blob: blob, what: what, n: a.n}
	for _, h := range a.hosts {
		e.errs = append(e.errs, fmt.Errorf("%s: %w", h, a.errs[h]))
	}
	if len(e.errs) == 0 {
		e.errs = []error{fmt.Errorf("no answer yet: %w", errdefs.ErrUnavailable)}
	}
	return e
}

func (e *fetchError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "fetch %s of blob %s: %d attempts failed", e.what, e.blob, e.n)
	for i, err := range e.errs {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		b.WriteString(err.Error())
	}
	return b.String()
}

func (e *fetchError) Unwrap() []error { return e.errs }
