package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// registryConfig is a registry whose storage is a directory. The harness
// starts it with this file as it is and reads the port from its debug log.
const registryConfig = `version: 0.1
loglevel: debug
storage:
    filesystem:
        rootdirectory: %s
http:
    addr: 127.0.0.1:0
`

// registryEnv makes a registry take manifests with foreign layers, which
// distribution v3 refuses unless it is told otherwise. The environment also
// reaches the registries that tests start with a configuration of their own.
const registryEnv = "REGISTRY_VALIDATION_DISABLED=true"

// registryProcess is a registry serving a mirror directory on loopback.
type registryProcess struct {
	host string
	cmd  *exec.Cmd
	done chan struct{} // closed when its log has been read to the end
}

var listenLine = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// startRegistry starts bin/registry on a mirror directory, making its config
// if there is none. Close it before the tests start theirs.
func startRegistry(bin, dir string) (*registryProcess, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, filepath.Join(dir, "data")), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(bin, "registry"), "serve", config)
	cmd.Env = append(os.Environ(), registryEnv)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	p := &registryProcess{cmd: cmd, done: make(chan struct{})}
	hosts := make(chan string, 1)
	go func() {
		defer close(p.done)
		scanner := bufio.NewScanner(log)
		for scanner.Scan() {
			if m := listenLine.FindSubmatch(scanner.Bytes()); m != nil {
				hosts <- string(m[1])
				break
			}
		}
		_, _ = io.Copy(io.Discard, log)
	}()
	select {
	case p.host = <-hosts:
		return p, nil
	case <-p.done:
		err = errors.New("registry ended before it listened")
	case <-time.After(10 * time.Second):
		err = errors.New("registry does not listen after 10 s")
	}
	p.close()
	return nil, err
}

// close ends the process and waits for it.
func (p *registryProcess) close() {
	_ = p.cmd.Process.Kill()
	<-p.done
	_ = p.cmd.Wait()
}

// push uploads what the registry lacks of an image and puts its manifest.
func (p *registryProcess) push(ctx context.Context, name, tag string, img image) error {
	for _, b := range img.blobs {
		if err := p.pushBlob(ctx, name, b); err != nil {
			return fmt.Errorf("push %s %s: %w", name, b.desc.Digest, err)
		}
	}
	target := fmt.Sprintf("http://%s/v2/%s/manifests/%s", p.host, name, tag)
	_, err := request(ctx, http.MethodPut, target, img.mediaType, img.manifest, http.StatusCreated)
	return err
}

func (p *registryProcess) pushBlob(ctx context.Context, name string, b blob) error {
	at := fmt.Sprintf("http://%s/v2/%s/blobs/", p.host, name)
	if _, err := request(ctx, http.MethodHead, at+b.desc.Digest.String(), "", nil, http.StatusOK); err == nil {
		return nil
	}
	header, err := request(ctx, http.MethodPost, at+"uploads/", "", nil, http.StatusAccepted)
	if err != nil {
		return err
	}
	location, err := url.Parse(header.Get("Location"))
	if err != nil {
		return err
	}
	q := location.Query()
	q.Set("digest", b.desc.Digest.String())
	location.RawQuery = q.Encode()
	_, err = request(ctx, http.MethodPut, location.String(), "application/octet-stream", b.data, http.StatusCreated)
	return err
}

// request sends one request, and fails unless the answer has the wanted status.
func request(ctx context.Context, method, target, contentType string, body []byte, want int) (http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<12))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		return nil, fmt.Errorf("%s %s: %s: %s", method, target, resp.Status, text)
	}
	return resp.Header, nil
}
