package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"time"
)

const goarch = runtime.GOARCH

// standIns are the public images that tests ask for and that a plain busybox
// rootfs can stand for. An image that is in the mirror is not fetched.
var standIns = []struct{ name, tag string }{
	{"library/busybox", "latest"},
	{"library/busybox", "stable-musl"},
	{"library/alpine", "latest"},
	{"tonistiigi/hellofs", "latest"},
	{"amd64/debian", "bullseye-20230109-slim"},
}

// mirror is the stand-in images, ready for the harness's own registry, and the
// server of the one layer that no registry holds.
type mirror struct {
	dir     string
	foreign *http.Server
}

// openMirror pushes what the mirror directory lacks. The caller closes the
// mirror after the tests.
func openMirror(ctx context.Context, l layout, kind base) (*mirror, error) {
	box, err := busybox(ctx, filepath.Join(l.root, "busybox"))
	if err != nil {
		return nil, err
	}
	tarball, err := rootfsTar(ctx, box)
	if err != nil {
		return nil, err
	}
	rootfs, err := makeLayer(tarball, kind)
	if err != nil {
		return nil, err
	}
	m := &mirror{dir: l.mirror(kind)}
	reg, err := startRegistry(l.bin(), m.dir)
	if err != nil {
		return nil, err
	}
	defer reg.close()
	if err := pushPlain(ctx, reg, rootfs); err != nil {
		return nil, err
	}
	if err := m.pushForeign(ctx, reg, rootfs); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *mirror) close() {
	if m.foreign != nil {
		_ = m.foreign.Close()
	}
}

// pushPlain pushes the images that need nothing but the registry.
func pushPlain(ctx context.Context, reg *registryProcess, rootfs blob) error {
	img, err := ociImage(rootfs)
	if err != nil {
		return err
	}
	for _, s := range standIns {
		if err := reg.push(ctx, s.name, s.tag, img); err != nil {
			return err
		}
	}
	empty, err := ociImage()
	if err != nil {
		return err
	}
	return reg.push(ctx, "tonistiigi/test", "nolayers", empty)
}

// pushForeign serves a foreign layer on loopback and pushes an image that
// names it. The manifest holds the server's port, so it is put anew each time.
func (m *mirror) pushForeign(ctx context.Context, reg *registryProcess, rootfs blob) error {
	tarball, err := smallTar("foreign", "a layer that lies elsewhere\n")
	if err != nil {
		return err
	}
	// Foreign layers are never converted: plain gzip whatever the base.
	foreign, err := makeLayer(tarball, baseGzip)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	m.foreign = &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(foreign.data)
		}),
	}
	go func() { _ = m.foreign.Serve(listener) }() // ends with close
	img, err := foreignImage(foreign, rootfs, fmt.Sprintf("http://%s/foreign.tar.gz", listener.Addr()))
	if err != nil {
		return err
	}
	return reg.push(ctx, "cpuguy83/buildkit-foreign", "latest", img)
}
