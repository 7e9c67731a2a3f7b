package worker

import (
	"net/url"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/executor/oci"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/llbsolver/cdidevices"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/sys/user"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options of a worker. Root, Snapshotter, Sessions and Hosts are required; the
// zero value of anything else is stock buildkitd's default.
type Options struct {
	// Root is the daemon's root. The worker's own directory is in it.
	Root string
	// Snapshotter is the name of a snapshotter, "auto" excluded: resolve that
	// with Choose.
	Snapshotter string
	// ProxyAddress is the path of a socket where a snapshotter is served. When
	// set, it is used whatever Snapshotter says, which is then only a name.
	ProxyAddress string
	// NotLazy is why another snapshotter than stargz was chosen, for reports; nil: it is
	// the one that was asked for.
	NotLazy error
	// Lazy configures the stargz snapshotter. Others ignore it.
	Lazy LazyOptions

	// Sessions reaches the clients, which hold the credentials.
	Sessions *bksession.Manager
	// Hosts is the registry configuration: mirrors, TLS, plain HTTP.
	Hosts docker.RegistryHosts
	// Expect, when set, is told of requests to come, see Registries.Expect.
	Expect func(host string, u *url.URL, n int)

	// Labels are added to those that describe the worker, and win over them.
	Labels map[string]string
	// Platforms that the worker builds for, the first being the default; none
	// means the platform of the process.
	Platforms []ocispecs.Platform
	// GCPolicy is applied in order; none means that nothing is collected.
	GCPolicy []client.PruneInfo
	// BuildkitVersion is what clients are told.
	BuildkitVersion client.BuildkitVersion

	// Network describes the networks of steps.
	Network netproviders.Opt
	// DNS overrides the resolver configuration of steps.
	DNS *oci.DNSConfig
	// Binary is the OCI runtime; empty means buildkit-runc, then runc, by PATH.
	Binary string
	// Rootless says that the daemon is root of a user namespace only.
	Rootless bool
	// ProcessMode says whether steps have a PID namespace of their own.
	ProcessMode oci.ProcessMode
	// IDMapping runs steps in a user namespace.
	IDMapping *user.IdentityMapping
	// ApparmorProfile of steps; it must be loaded already.
	ApparmorProfile string
	// SELinux labels steps and their mounts.
	SELinux bool
	// CgroupParent of steps.
	CgroupParent string
	// MaxParallelism bounds the steps that run at the same time; 0: no bound.
	MaxParallelism int
	// TraceSocket is given to steps that send traces.
	TraceSocket string
	// CDI gives devices to steps; nil: no devices.
	CDI *cdidevices.Manager
}

// LazyOptions configure lazily mounted layers. Zero values are the defaults of
// the packages that they are handed to.
type LazyOptions struct {
	// PrefetchSize is how many bytes at the start of a layer are fetched when it
	// is first mounted. A landmark in the layer overrides it.
	PrefetchSize int64
	// BackgroundFetch fetches what is missing of a layer in the pauses between
	// reads.
	BackgroundFetch bool
	// Connections is the number of parallel requests to one host.
	Connections int
	// RequestSize is the largest range of one request, in bytes.
	RequestSize int64
	// TTL is how long a layer stays resolved after its last use.
	TTL time.Duration
	// FetchTimeout ends a read for which no byte has arrived for so long; 0: 5 minutes.
	FetchTimeout time.Duration
	// ResolveTimeout is for how long a manifest, or an image's config, is asked for
	// again; 0: 1 minute, below 0: once.
	ResolveTimeout time.Duration
	// MinWait and MaxWait bound the pause before a request is made again.
	MinWait, MaxWait time.Duration
	// MaxBytes is how much disk space the bytes of lazy layers may have before those
	// that no mount needs are evicted; 0: no limit.
	MaxBytes int64
	// ProfileDir keeps what steps have read of layers; empty: below Options.Root.
	ProfileDir string
	// NoProfiles turns that off.
	NoProfiles bool
	// NoImages serves layers by FUSE alone, also where the kernel can show them as EROFS
	// images.
	NoImages bool
	// Debug logs each FUSE message.
	Debug bool
}
