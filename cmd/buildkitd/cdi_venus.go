//go:build venus

package main

import _ "github.com/moby/buildkit/contrib/cdisetup/venus" // sets up virtio-gpu Venus devices on demand
