// Buildkitd is LazyKit's daemon: a drop-in for the buildkitd of BuildKit v0.33.1
// whose OCI worker mounts base images lazily.
//
// Flags, environment and config file are stock buildkitd's; docs/buildkitd.md
// describes them and lists every difference, and a test compares them with
// stock's. This package has no logic of builds: it reads the configuration, puts
// BuildKit's controller together with the worker of package worker, listens, and
// stops in order.
package main
