package main

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strconv"

	"github.com/moby/buildkit/util/disk"
	"github.com/moby/sys/userns"
)

// options are all flags, in the order of the help. Their defaults come from the
// default config file; order matters where two flags set the same thing (debug,
// trace, log-level; rootless, oci-worker-rootless): the later wins.
func options(def settings) optionTable {
	return slices.Concat(daemonOptions(def), containerdOptions(def), ociOptions(def))
}

func daemonOptions(def settings) optionTable {
	inUserNS := userns.RunningInUserNS()
	rootlessUsage := "set all the default options to be compatible with rootless containers"
	if inUserNS {
		rootlessUsage += " (default: true)"
	}
	return optionTable{
		toggle("rootless", rootlessUsage, inUserNS, func(s *settings, v bool) error {
			s.Workers.OCI.Rootless = v
			return nil
		}, func(o *option) { o.always = inUserNS }),
		{flag: configFlag()},
		toggle("debug", "enable debug output in logs", false, func(s *settings, v bool) error {
			if v {
				s.Log.Level = "debug"
			}
			return nil
		}),
		toggle("trace", "enable trace output in logs (highly verbose, could affect performance)", false, func(s *settings, v bool) error {
			s.warn("--trace option is deprecated; use --log-level=trace instead")
			if v {
				s.Log.Level = "trace"
			}
			return nil
		}, hidden(true)),
		text("root", "path to state directory", def.Root, func(s *settings, v string) error {
			s.Root = v
			return nil
		}),
		list("addr", "listening address (socket or tcp)", def.GRPC.Address[:1], func(s *settings, v []string) error {
			s.GRPC.Address = v
			return nil
		}),
		text("log-format", "log formatter: json or text", "text", func(s *settings, v string) error {
			s.Log.Format = v
			return nil
		}),
		text("log-level", "set the log level", "info", func(s *settings, v string) error {
			s.Log.Level = v
			return nil
		}, env("BUILDKITD_LOG_LEVEL")),
		text("group", "group (name or gid) which will own all Unix socket listening addresses", gidText(def.GRPC.GID), setGroup, evenDefault),
		text("debugaddr", "debugging address (eg. 0.0.0.0:6060)", def.GRPC.DebugAddress, func(s *settings, v string) error {
			s.GRPC.DebugAddress = v
			return nil
		}, env("BUILDKITD_DEBUGADDR")),
		text("tlscert", "certificate file to use", def.GRPC.TLS.Cert, func(s *settings, v string) error {
			return setUnlessEmpty(&s.GRPC.TLS.Cert, v)
		}, evenDefault),
		text("tlskey", "key file to use", def.GRPC.TLS.Key, func(s *settings, v string) error {
			return setUnlessEmpty(&s.GRPC.TLS.Key, v)
		}, evenDefault),
		text("tlscacert", "ca certificate to verify clients", def.GRPC.TLS.CA, func(s *settings, v string) error {
			return setUnlessEmpty(&s.GRPC.TLS.CA, v)
		}, evenDefault),
		list("allow-insecure-entitlement", "allows insecure entitlements e.g. network.host, security.insecure, device", nil, setEntitlements),
		toggle("proxy-network", "enable proxy network enforcement for all builds", false, func(s *settings, v bool) error {
			s.ProxyNetwork = v
			return nil
		}),
		text("otel-socket-path", "OTEL collector trace socket path", "", func(s *settings, v string) error {
			s.OTEL.SocketPath = v
			return nil
		}),
		toggle("cdi-disabled", "disables support of the Container Device Interface (CDI)", false, func(s *settings, v bool) error {
			s.CDI.Disabled = &v
			return nil
		}),
		list("cdi-spec-dir", "list of directories to scan for CDI spec files", nil, func(s *settings, v []string) error {
			s.CDI.SpecDirs = v
			return nil
		}),
		toggle("save-cache-debug", "enable saving cache debug info", false, func(s *settings, v bool) error {
			s.saveCacheDebug = v
			return nil
		}),
	}
}

func ociOptions(def settings) optionTable {
	oci := def.Workers.OCI
	stat, _ := disk.GetDiskStat(def.Root)
	return optionTable{
		text("oci-worker", "enable oci workers (true/false/auto)", triState(oci.Enabled), func(s *settings, v string) (err error) {
			s.Workers.OCI.Enabled, err = parseTriState(v)
			return err
		}),
		list("oci-worker-labels", "user-specific annotation labels (com.example.foo=bar)", nil, func(s *settings, v []string) error {
			labels, err := parseLabels(v)
			if err != nil {
				return err
			}
			if s.Workers.OCI.Labels == nil {
				s.Workers.OCI.Labels = map[string]string{}
			}
			maps.Copy(s.Workers.OCI.Labels, labels)
			return nil
		}),
		text("oci-worker-snapshotter", "name of snapshotter (stargz, overlayfs, native, etc.)", oci.Snapshotter, func(s *settings, v string) error {
			s.Workers.OCI.Snapshotter = v
			return nil
		}),
		text("oci-worker-proxy-snapshotter-path", "address of proxy snapshotter socket (do not include 'unix://' prefix)", "", func(s *settings, v string) error {
			s.Workers.OCI.ProxySnapshotterPath = v
			return nil
		}),
		list("oci-worker-platform", "override supported platforms for worker", nil, func(s *settings, v []string) error {
			if len(v) > 0 {
				s.Workers.OCI.Platforms = v
			}
			return nil
		}),
		text("oci-worker-net", "worker network type (auto, bridge, cni or host)", oci.Mode, func(s *settings, v string) error {
			s.Workers.OCI.Mode = v
			return nil
		}),
		text("oci-cni-config-path", "path of cni config file", oci.CNIConfigPath, func(s *settings, v string) error {
			s.Workers.OCI.CNIConfigPath = v
			return nil
		}),
		text("oci-cni-binary-dir", "path of cni binary files", oci.CNIBinaryPath, func(s *settings, v string) error {
			s.Workers.OCI.CNIBinaryPath = v
			return nil
		}),
		number("oci-cni-pool-size", "size of cni network namespace pool", oci.CNIPoolSize, func(s *settings, v int) error {
			s.Workers.OCI.CNIPoolSize = v
			return nil
		}),
		text("oci-worker-binary", "name of specified oci worker binary", oci.Binary, func(s *settings, v string) error {
			s.Workers.OCI.Binary = v
			return nil
		}),
		text("oci-worker-apparmor-profile", "set the name of the apparmor profile applied to containers", "", func(s *settings, v string) error {
			s.Workers.OCI.ApparmorProfile = v
			return nil
		}),
		toggle("oci-worker-selinux", "apply SELinux labels", false, func(s *settings, v bool) error {
			s.Workers.OCI.SELinux = v
			return nil
		}),
		number("oci-max-parallelism", "limit the number of parallel build steps that can run at the same time", oci.MaxParallelism, func(s *settings, v int) error {
			s.Workers.OCI.MaxParallelism = v
			return nil
		}),
		toggle("oci-worker-rootless", "enable rootless mode", userns.RunningInUserNS(), func(s *settings, v bool) error {
			if !userns.RunningInUserNS() || os.Geteuid() > 0 {
				return errNotRoot
			}
			s.Workers.OCI.Rootless = v
			return nil
		}),
		toggle("oci-worker-no-process-sandbox", "use the host PID namespace and procfs (WARNING: allows build containers to kill (and potentially ptrace) an arbitrary process in the host namespace)", false, func(s *settings, v bool) error {
			s.Workers.OCI.NoProcessSandbox = v
			return nil
		}),
		toggle("oci-worker-gc", "Enable automatic garbage collection on worker", oci.GC == nil || *oci.GC, func(s *settings, v bool) error {
			s.Workers.OCI.GC = &v
			return nil
		}),
		text("oci-worker-gc-keepstorage", gcUsage, formatGC(oci.GCConfig, stat), func(s *settings, v string) error {
			return parseGC(v, &s.Workers.OCI.GCConfig)
		}, hidden(len(oci.GCPolicy) != 0)),
	}
}

// setGroup is applied with the flag's default, too: that is how the group of the
// default config file reaches a daemon that was given another file.
func setGroup(s *settings, group string) error {
	if group == "" {
		return nil
	}
	gid, err := lookupGID(group)
	if err != nil {
		return err
	}
	s.GRPC.GID = &gid
	return nil
}

// setEntitlements replaces the config's.
func setEntitlements(s *settings, names []string) error {
	for _, n := range names {
		switch n {
		case "security.insecure", "network.host", "device":
		default:
			return errors.New("invalid entitlement : " + n)
		}
	}
	s.Entitlements = names
	return nil
}

func setUnlessEmpty(dst *string, v string) error {
	if v != "" {
		*dst = v
	}
	return nil
}

func gidText(gid *int) string {
	if gid == nil {
		return ""
	}
	return strconv.Itoa(*gid)
}
