package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push uploads img to a registry that speaks plain HTTP at host (host:port)
// without asking who is there, and returns the image's reference. Blobs that it
// has already are not sent again.
func Push(ctx context.Context, host string, img *Image) (string, error) {
	ref := host + "/" + img.Tag()
	base := "http://" + host + "/v2/" + img.Name
	for _, d := range append([]ocispecs.Descriptor{img.Config}, img.Layers...) {
		if err := pushBlob(ctx, base, img.Blob(d.Digest), d); err != nil {
			return "", fmt.Errorf("push %s: %w", ref, err)
		}
	}
	manifest, err := os.ReadFile(img.Blob(img.Manifest.Digest))
	if err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	header := http.Header{"Content-Type": {img.Manifest.MediaType}}
	body := strings.NewReader(string(manifest))
	if _, err := do(ctx, http.MethodPut, base+"/manifests/"+string(img.Format), header, body, body.Size(), http.StatusCreated); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	return ref, nil
}

// pushBlob uploads one blob in a single PUT.
func pushBlob(ctx context.Context, base, path string, d ocispecs.Descriptor) error {
	if _, err := do(ctx, http.MethodHead, base+"/blobs/"+d.Digest.String(), nil, nil, 0, http.StatusOK); err == nil {
		return nil
	}
	start, err := do(ctx, http.MethodPost, base+"/blobs/uploads/", nil, nil, 0, http.StatusAccepted)
	if err != nil {
		return err
	}
	to, err := start.Request.URL.Parse(start.Header.Get("Location"))
	if err != nil {
		return fmt.Errorf("blob %s: the registry's upload location: %w", d.Digest, err)
	}
	query := to.Query()
	query.Set("digest", d.Digest.String())
	to.RawQuery = query.Encode()
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	defer file.Close()
	info, err := file.Stat() // the descriptor's size may be a lie
	if err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	_, err = do(ctx, http.MethodPut, to.String(), header, file, info.Size(), http.StatusCreated)
	return err
}

// do sends one request and expects one status; the response's body is drained
// and closed on return.
func do(ctx context.Context, method, target string, header http.Header, body io.Reader, size int64, want int) (*http.Response, error) {
	name := target
	if u, err := url.Parse(target); err == nil {
		name = u.Path
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, name, err)
	}
	if body != nil {
		req.ContentLength = size
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, name, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, name, err)
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, name, resp.Status, strings.TrimSpace(string(answer)))
	}
	return resp, nil
}
