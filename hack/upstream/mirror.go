package main

import (
	"context"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
)

const goarch = runtime.GOARCH

// recipe changes whenever the stand-in images do, so that neither an old mirror
// nor what stock did on it is used.
const recipe = "3"

// standIns are the public images that tests ask for and that a plain busybox
// rootfs can stand for. An image that is in the mirror is not fetched.
var standIns = []struct {
	name, tag string
	alpine    bool
}{
	{name: "library/busybox", tag: "latest"},
	{name: "library/busybox", tag: "stable-musl"},
	{name: "library/busybox_amd64", tag: "latest"},
	{name: "library/alpine", tag: "latest", alpine: true},
	{name: "tonistiigi/hellofs", tag: "latest"},
	{name: "amd64/debian", tag: "bullseye-20230109-slim"},
}

// foreignURL is where a foreign layer is said to lie. Nothing listens there: as
// with the original image, whose layer the harness copies into its mirror, the
// registry has the bytes as well.
const foreignURL = "http://127.0.0.1:1/foreign.tar"

// fillMirror pushes what the mirror directory lacks. The directory is then
// served by the harness's own registry.
func fillMirror(ctx context.Context, l layout, kind base) error {
	box, err := busybox(ctx, filepath.Join(l.root, "busybox"))
	if err != nil {
		return err
	}
	layers := map[bool]blob{}
	for _, alpine := range []bool{false, true} {
		tarball, err := rootfsTar(ctx, box, alpine)
		if err != nil {
			return err
		}
		if layers[alpine], err = makeLayer(tarball, kind); err != nil {
			return err
		}
	}
	reg, err := startRegistry(l.bin(), l.mirror(kind))
	if err != nil {
		return err
	}
	defer reg.close()
	for _, s := range standIns {
		img, err := ociImage(layers[s.alpine])
		if err != nil {
			return err
		}
		if err := reg.push(ctx, s.name, s.tag, img); err != nil {
			return err
		}
	}
	return pushOdd(ctx, reg, layers[false])
}

// pushOdd pushes an image without layers and one with a foreign layer.
func pushOdd(ctx context.Context, reg *registryProcess, rootfs blob) error {
	empty, err := ociImage()
	if err != nil {
		return err
	}
	if err := reg.push(ctx, "tonistiigi/test", "nolayers", empty); err != nil {
		return err
	}
	tarball, err := smallTar("foreign", "a layer that lies elsewhere\n")
	if err != nil {
		return err
	}
	foreign := newBlob(tarball, digest.FromBytes(tarball), nil)
	img, err := foreignImage(foreign, rootfs, foreignURL)
	if err != nil {
		return err
	}
	return reg.push(ctx, "cpuguy83/buildkit-foreign", "latest", img)
}
