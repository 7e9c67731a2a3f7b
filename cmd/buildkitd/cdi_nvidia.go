//go:build nvidia

package main

import _ "github.com/moby/buildkit/contrib/cdisetup/nvidia" // sets up NVIDIA devices on demand
