package blob

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const (
	// A stale token, its renewal with the old one still cached, the new one; and
	// that for more than one identity.
	maxAuthTries = 8
	maxRedirects = 5
)

// Identities may be implemented by the authorizer of a registry host that can
// speak for several users. NextIdentity goes on to the next one, after an answer
// that is no question of authentication (forbidden, or not found, which some
// registries say instead); it returns false when there is no other.
type Identities interface {
	NextIdentity() bool
}

// send asks c for the blob and returns an answer with contents (200 or 206, for
// HEAD also 3xx). The target of an earlier redirect is asked first, and the
// registry again when the target refuses: such targets expire.
func (e *entry) send(ctx context.Context, dog *watchdog, c *candidate, method, rng string) (*http.Response, error) {
	if method == http.MethodGet {
		if target := e.target(c); target != "" {
			resp, err := e.sendTarget(ctx, dog, c, target, rng)
			if err == nil || ctx.Err() != nil || !outdated(err) {
				return resp, err
			}
			e.setTarget(c, "")
		}
	}
	return e.sendRegistry(ctx, dog, c, method, rng)
}

// outdated says whether a redirect target's failure may be cured by asking the
// registry for a new one: all but what the new one would answer too.
func outdated(err error) bool {
	var se *statusError
	if !errors.As(err, &se) {
		return true
	}
	switch se.code {
	case http.StatusTooManyRequests, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented:
		return false
	}
	return se.code < 500
}

// sendRegistry asks the registry itself, with authorization, and follows where it
// redirects to.
func (e *entry) sendRegistry(ctx context.Context, dog *watchdog, c *candidate, method, rng string) (*http.Response, error) {
	ctx, err := docker.ContextWithRepositoryScope(ctx, c.spec, false)
	if err != nil {
		return nil, err
	}
	var refused []*http.Response
	for tries := 1; ; tries++ {
		req, err := c.request(ctx, method, c.url(e.dgst.String()), rng)
		if err != nil {
			return nil, err
		}
		if c.Authorizer != nil {
			dog.watch("authorization", e.store.opts.AuthTimeout)
			if err := c.Authorizer.Authorize(ctx, req); err != nil {
				return nil, newAuthError(causeOf(ctx, err))
			}
		}
		dog.watch(stepHeader, e.store.opts.HeaderTimeout)
		resp, err := c.client.Do(req)
		if err != nil {
			return nil, causeOf(ctx, err)
		}
		switch {
		case isRedirect(resp) && method == http.MethodHead:
			return resp, nil // the registry has the blob
		case isRedirect(resp):
			return e.follow(ctx, dog, c, resp, rng)
		case resp.StatusCode == http.StatusUnauthorized && c.Authorizer != nil && tries < maxAuthTries:
			refused = append(refused, resp)
			status := newStatusError(resp, e.store.opts.RetryAfterMax)
			dog.watch("authorization", e.store.opts.AuthTimeout)
			if err := c.Authorizer.AddResponses(ctx, refused); err != nil {
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				return nil, fmt.Errorf("%w (%w)", status, err)
			}
			continue
		case (resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusNotFound) && tries < maxAuthTries:
			if ids, ok := c.Authorizer.(Identities); ok && ids.NextIdentity() {
				resp.Body.Close()
				continue
			}
		}
		return e.checkStatus(resp)
	}
}

// follow goes where a registry's answer points and remembers the place. The
// registry's credentials and headers stay behind, unless it points to itself.
func (e *entry) follow(ctx context.Context, dog *watchdog, c *candidate, resp *http.Response, rng string) (*http.Response, error) {
	for range maxRedirects {
		at, err := resp.Location()
		resp.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("%w: redirect: %w", errWrongAnswer, err)
		}
		if at.Scheme != "http" && at.Scheme != "https" {
			return nil, fmt.Errorf("%w: redirect to scheme %.16q", errWrongAnswer, at.Scheme)
		}
		if resp, err = e.get1(ctx, dog, c, at.String(), rng); err != nil {
			return nil, err
		}
		if isRedirect(resp) {
			continue
		}
		resp, err = e.checkStatus(resp)
		if err == nil {
			e.setTarget(c, at.String())
		}
		return resp, err
	}
	resp.Body.Close()
	return nil, fmt.Errorf("%w: more than %d redirects", errWrongAnswer, maxRedirects)
}

// sendTarget asks a remembered target.
func (e *entry) sendTarget(ctx context.Context, dog *watchdog, c *candidate, target, rng string) (*http.Response, error) {
	resp, err := e.get1(ctx, dog, c, target, rng)
	if err != nil {
		return nil, err
	}
	if isRedirect(resp) {
		return e.follow(ctx, dog, c, resp, rng)
	}
	return e.checkStatus(resp)
}

// get1 sends one GET to a redirect target.
func (e *entry) get1(ctx context.Context, dog *watchdog, c *candidate, target, rng string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	setHeaders(req, rng)
	if c.ownURL(req.URL) {
		c.addHeaders(req)
		if c.Authorizer != nil {
			dog.watch("authorization", e.store.opts.AuthTimeout)
			if err := c.Authorizer.Authorize(ctx, req); err != nil {
				return nil, newAuthError(causeOf(ctx, err))
			}
		}
	}
	dog.watch(stepHeader, e.store.opts.HeaderTimeout)
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, causeOf(ctx, stripURL(err))
	}
	return resp, nil
}

// stripURL takes the address out of an error: the query of a redirect target is a
// secret for as long as it is valid.
func stripURL(err error) error {
	var ue *url.Error
	if !errors.As(err, &ue) {
		return err
	}
	at := "redirect target"
	if u, perr := url.Parse(ue.URL); perr == nil {
		at += " " + u.Host
	}
	return fmt.Errorf("%s: %w", at, ue.Err)
}

// request makes a request to the registry.
func (c *candidate) request(ctx context.Context, method, target, rng string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, nil)
	if err != nil {
		return nil, err
	}
	setHeaders(req, rng)
	c.addHeaders(req)
	return req, nil
}

func setHeaders(req *http.Request, rng string) {
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept-Encoding", "identity") // ranges are of the blob's own bytes
	if rng != "" {
		req.Header.Set("Range", rng)
	}
}

// addHeaders adds the host's configured headers.
func (c *candidate) addHeaders(req *http.Request) {
	for k, v := range c.Header {
		if k == "User-Agent" {
			req.Header.Del(k)
		}
		req.Header[k] = append(req.Header[k], v...)
	}
}

// ownURL says whether u is at the registry host itself, which may see its credentials.
func (c *candidate) ownURL(u *url.URL) bool { return u.Scheme == c.Scheme && u.Host == c.Host }

func isRedirect(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// checkStatus returns answers with contents and turns all others into errors.
func (e *entry) checkStatus(resp *http.Response) (*http.Response, error) {
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent {
		return resp, nil
	}
	cr, crErr := parseContentRange(resp.Header.Get("Content-Range"))
	se := newStatusError(resp, e.store.opts.RetryAfterMax)
	if se.code == http.StatusRequestedRangeNotSatisfiable && crErr == nil && cr.empty() {
		return nil, &unsatisfiedError{status: se, total: cr.total}
	}
	return nil, se
}

// target is where c's redirects led last, "" for none.
func (e *entry) target(c *candidate) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.targets[c.key()]
}

func (e *entry) setTarget(c *candidate, target string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if target == "" {
		delete(e.mu.targets, c.key())
		return
	}
	if e.mu.targets == nil {
		e.mu.targets = map[string]string{}
	}
	e.mu.targets[c.key()] = target
}
