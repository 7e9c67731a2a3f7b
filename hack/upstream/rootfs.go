package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// epoch is the modification time of everything in the stand-in images, so
// that their digests do not change between runs.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// rootfsDirs are the directories that official small images have, with their
// modes.
var rootfsDirs = []struct {
	name string
	mode int64
}{
	{"bin", 0o755}, {"dev", 0o755}, {"etc", 0o755}, {"etc/ssl", 0o755}, {"etc/ssl/certs", 0o755}, {"home", 0o755}, {"lib", 0o755}, {"mnt", 0o755},
	{"opt", 0o755}, {"proc", 0o555}, {"root", 0o700}, {"run", 0o755}, {"sbin", 0o755}, {"srv", 0o755},
	{"sys", 0o555}, {"tmp", 0o1777}, {"usr", 0o755}, {"usr/bin", 0o755}, {"usr/sbin", 0o755},
	{"usr/lib", 0o755}, {"usr/share", 0o755}, {"var", 0o755}, {"var/log", 0o755}, {"var/tmp", 0o1777},
}

// rootfsFiles are the small files that tests read.
var rootfsFiles = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n" +
		"bin:x:2:2:bin:/bin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n" +
		"nobody:x:65534:65534:nobody:/home:/bin/false\n",
	"etc/group":         "root:x:0:\ndaemon:x:1:\nbin:x:2:\nwheel:x:10:root\nwww-data:x:33:\nnobody:x:65534:\n",
	"etc/shadow":        "root:*:::::::\ndaemon:*:::::::\nbin:*:::::::\nnobody:*:::::::\n",
	"etc/hostname":      "standin\n",
	"etc/nsswitch.conf": "hosts: files dns\n",
}

// alpineFiles are what tests look for in an Alpine image only. Packages can't be
// had without a network, with or without a real apk.
var alpineFiles = map[string]string{
	"etc/os-release":                    "ID=alpine\nNAME=\"Alpine Linux\"\nVERSION_ID=3.22.0\nPRETTY_NAME=\"stand-in for tests\"\n",
	"etc/alpine-release":                "3.22.0\n",
	"etc/issue":                         "stand-in for tests\n",
	"etc/ssl/certs/ca-certificates.crt": "# no certificates\n",
	"sbin/apk":                          "#!/bin/sh\necho 'apk: a stand-in, there is no network' >&2\nexit 1\n",
}

// busybox returns the path of a static busybox: Debian's package, unpacked in
// dir and not installed, as it would replace the machine's own.
func busybox(ctx context.Context, dir string) (string, error) {
	bin := filepath.Join(dir, "unpacked", "bin", "busybox")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	step("fetching Debian's busybox-static")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := runQuiet(ctx, dir, nil, "apt-get", "download", "busybox-static"); err != nil {
		// The package lists may be missing or stale on a fresh machine.
		if uerr := runQuiet(ctx, dir, nil, "apt-get", "update"); uerr != nil {
			return "", errors.Join(err, uerr)
		}
		if err := runQuiet(ctx, dir, nil, "apt-get", "download", "busybox-static"); err != nil {
			return "", err
		}
	}
	debs, err := filepath.Glob(filepath.Join(dir, "busybox-static_*.deb"))
	if err != nil || len(debs) == 0 {
		return "", fmt.Errorf("busybox-static was not downloaded into %s", dir)
	}
	if err := runQuiet(ctx, dir, nil, "dpkg", "-x", debs[len(debs)-1], "unpacked"); err != nil {
		return "", err
	}
	return bin, nil
}

// rootfsTar writes the rootfs of a stand-in in a fixed order: busybox, its
// applets, and a few files. As in the official images, the applets of busybox are
// hard links that all lie in /bin, and those of Alpine symbolic links that each
// have their usual directory.
func rootfsTar(ctx context.Context, busybox string, alpine bool) ([]byte, error) {
	list, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list-full: %w", busybox, err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, d := range rootfsDirs {
		if err := tw.WriteHeader(header(d.name+"/", tar.TypeDir, d.mode, 0)); err != nil {
			return nil, err
		}
	}
	if err := writeFile(tw, "bin/busybox", 0o755, program); err != nil {
		return nil, err
	}
	if err := writeFiles(tw, rootfsFiles); err != nil {
		return nil, err
	}
	if alpine {
		if err := writeFiles(tw, alpineFiles); err != nil {
			return nil, err
		}
	}
	if err := writeApplets(tw, strings.Fields(string(list)), alpine); err != nil {
		return nil, err
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func writeApplets(tw *tar.Writer, paths []string, alpine bool) error {
	for _, applet := range paths {
		h := header(applet, tar.TypeSymlink, 0o777, 0)
		h.Linkname = "/bin/busybox"
		if !alpine {
			h = header("bin/"+path.Base(applet), tar.TypeLink, 0o755, 0)
			h.Linkname = "bin/busybox"
		}
		if h.Name == "bin/busybox" || path.Dir(h.Name) == "." {
			continue
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
	}
	return nil
}

// writeFiles writes files by name; what lies in a directory of programs can be
// run.
func writeFiles(tw *tar.Writer, files map[string]string) error {
	for _, name := range sortedKeys(files) {
		mode := int64(0o644)
		if path.Base(path.Dir(name)) == "sbin" {
			mode = 0o755
		}
		if err := writeFile(tw, name, mode, []byte(files[name])); err != nil {
			return err
		}
	}
	return nil
}

func header(name string, typ byte, mode int64, size int) *tar.Header {
	return &tar.Header{Name: name, Typeflag: typ, Mode: mode, Size: int64(size), ModTime: epoch, Format: tar.FormatPAX}
}

func writeFile(tw *tar.Writer, name string, mode int64, data []byte) error {
	if err := tw.WriteHeader(header(name, tar.TypeReg, mode, len(data))); err != nil {
		return err
	}
	_, err := io.Copy(tw, bytes.NewReader(data))
	return err
}
