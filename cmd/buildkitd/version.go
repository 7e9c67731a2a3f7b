package main

import (
	"runtime/debug"

	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/version"
)

const (
	buildkitModule = "github.com/moby/buildkit"
	unknownVersion = "v0.0.0+unknown"
)

// identify fills in what BuildKit's own build sets at link time.
//
// Clients judge by the version what a daemon can do, so it is that of the
// BuildKit that we are made of, and the package stays BuildKit's: buildx compares
// it, and the User-Agent that registries see is derived from it. The revision
// carries LazyKit's own identity. It is never empty: buildx's docker-container
// driver wants exactly four words from `buildkitd --version`.
func identify() {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if version.Version == unknownVersion {
		if v := moduleVersion(info, buildkitModule); v != "" {
			version.Version = v
		}
	}
	if version.Revision == "" {
		version.Revision = revision(info)
	}
}

// moduleVersion is the version of a module that the program contains, or "".
func moduleVersion(info *debug.BuildInfo, path string) string {
	for _, m := range info.Deps {
		if m.Path == path {
			if m.Replace != nil {
				return m.Replace.Version
			}
			return m.Version
		}
	}
	return ""
}

// revision is lazykit, followed by the commit where that is known and a mark for
// a tree with changes.
func revision(info *debug.BuildInfo) string {
	rev, mark := "lazykit", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && s.Value != "":
			rev += "-" + s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			mark = ".m"
		}
	}
	return rev + mark
}

func buildkitVersion() client.BuildkitVersion {
	return client.BuildkitVersion{
		Package:           version.Package,
		Version:           version.Version,
		Revision:          version.Revision,
		DockerfileVersion: dockerfileversion.Version(),
	}
}
