package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"
)

// TestFlagsAreStocks compares names, types, help, environment and visibility with
// stock's source.
func TestFlagsAreStocks(t *testing.T) {
	stock, ours := stockFlags(t), ourFlags(t)
	for name, want := range stock {
		f, ok := ours[name]
		if !ok {
			t.Errorf("--%s of stock is missing", name)
			continue
		}
		kind, usage, env, hidden := describe(t, f)
		require.Equal(t, want.kind, kind, "type of --%s", name)
		if want.hidden != "an expression" {
			require.Equal(t, want.hidden == "true", hidden, "visibility of --%s", name)
		}
		require.Equal(t, want.env, env, "environment of --%s", name)
		if isDifferent("--"+name, usageText) {
			require.NotEqual(t, want.usage, usage, "--%s is listed as different, and is not", name)
		} else {
			require.Equal(t, want.usage, usage, "help of --%s", name)
		}
	}
	for name := range ours {
		require.Contains(t, stock, name, "stock has no --%s", name)
	}
}

func describe(t *testing.T, f cli.Flag) (kind, usage, env string, hidden bool) {
	t.Helper()
	switch f := f.(type) {
	case *cli.StringFlag:
		return "StringFlag", f.Usage, strings.Join(f.GetEnvVars(), ","), f.Hidden
	case *cli.StringSliceFlag:
		return "StringSliceFlag", f.Usage, strings.Join(f.GetEnvVars(), ","), f.Hidden
	case *cli.BoolFlag:
		return "BoolFlag", f.Usage, strings.Join(f.GetEnvVars(), ","), f.Hidden
	case *cli.IntFlag:
		return "IntFlag", f.Usage, strings.Join(f.GetEnvVars(), ","), f.Hidden
	}
	t.Fatalf("--%s has the type %T", f.Names()[0], f)
	return
}

// TestHelpIsStocks compares with a stock binary what its source can't tell: the
// defaults as they come out on this machine.
func TestHelpIsStocks(t *testing.T) {
	stock := os.Getenv("STOCK_BUILDKITD")
	if stock == "" {
		t.Skip("STOCK_BUILDKITD names no stock buildkitd")
	}
	want, err := exec.CommandContext(t.Context(), stock, "--help").Output()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "--help")
	cmd.Env = append(os.Environ(), runAsDaemon+"=1")
	got, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, optionsOf(want), optionsOf(got))
}

// optionsOf are the lines of the help about options, those with another text
// left out, by their names.
func optionsOf(help []byte) map[string]string {
	_, help, _ = bytes.Cut(help, []byte("GLOBAL OPTIONS:\n"))
	out := map[string]string{}
	for line := range strings.Lines(string(help)) {
		if name := strings.TrimRight(strings.Fields(line)[0], ","); !isDifferent(name, usageText) {
			out[name] = strings.Join(strings.Fields(line), " ")
		}
	}
	return out
}

func TestFlagsOverConfig(t *testing.T) {
	const file = `
root = "/from/config"
insecure-entitlements = ["device"]
proxyNetwork = true
[log]
  level = "warn"
  format = "json"
[grpc]
  address = ["unix:///from/config.sock"]
  gid = 77
  [grpc.tls]
    cert = "config.pem"
    key = "config.key"
[worker.oci]
  snapshotter = "native"
  platforms = ["linux/arm64"]
  reservedSpace = "5GB"
  max-parallelism = 3
  cniConfigPath = "/config/cni.json"
  [worker.oci.labels]
    a = "config"
    b = "config"
`
	for _, c := range []struct {
		name  string
		args  []string
		env   map[string]string
		check func(*testing.T, *settings)
	}{
		{"nothing given", nil, nil, func(t *testing.T, s *settings) {
			require.Equal(t, "/from/config", s.Root)
			require.Equal(t, []string{"unix:///from/config.sock"}, s.GRPC.Address)
			require.Equal(t, "warn", s.Log.Level)
			require.Equal(t, "json", s.Log.Format)
			require.Equal(t, 77, *s.GRPC.GID)
			require.Equal(t, os.Getuid(), *s.GRPC.UID)
			require.Equal(t, "native", s.Workers.OCI.Snapshotter)
			require.Equal(t, []string{"linux/arm64"}, s.Workers.OCI.Platforms)
			require.Equal(t, "config.pem", s.GRPC.TLS.Cert)
			require.Equal(t, 3, s.Workers.OCI.MaxParallelism)
			require.True(t, s.ProxyNetwork)
			require.Equal(t, []string{"device"}, s.Entitlements)
		}},
		{"flags", []string{"--root=/from/flag", "--addr=tcp://127.0.0.1:1", "--addr=unix:///x", "--group=5", "--oci-worker-snapshotter=overlayfs",
			"--oci-worker-platform=linux/amd64", "--tlscert=flag.pem", "--oci-max-parallelism=0", "--proxy-network=false",
			"--allow-insecure-entitlement=network.host", "--oci-worker-labels=a=flag,still", "--log-format=text",
			"--oci-cni-config-path=/flag/cni.json", "--oci-worker-gc-keepstorage=1,2"}, nil, func(t *testing.T, s *settings) {
			require.Equal(t, "/from/flag", s.Root)
			require.Equal(t, []string{"tcp://127.0.0.1:1", "unix:///x"}, s.GRPC.Address)
			require.Equal(t, 5, *s.GRPC.GID)
			require.Equal(t, "overlayfs", s.Workers.OCI.Snapshotter)
			require.Equal(t, []string{"linux/amd64"}, s.Workers.OCI.Platforms)
			require.Equal(t, "flag.pem", s.GRPC.TLS.Cert)
			require.Equal(t, "config.key", s.GRPC.TLS.Key)
			require.Zero(t, s.Workers.OCI.MaxParallelism)
			require.False(t, s.ProxyNetwork)
			require.Equal(t, []string{"network.host"}, s.Entitlements)
			require.Equal(t, map[string]string{"a": "flag,still", "b": "config"}, s.Workers.OCI.Labels)
			require.Equal(t, "text", s.Log.Format)
			require.Equal(t, "/flag/cni.json", s.Workers.OCI.CNIConfigPath)
			require.Equal(t, int64(1_000_000), s.Workers.OCI.GCReservedSpace.Bytes)
			require.Equal(t, int64(2_000_000), s.Workers.OCI.GCMinFreeSpace.Bytes)
			require.Zero(t, s.Workers.OCI.GCMaxUsedSpace.Bytes)
		}},
		{"debug", []string{"--debug"}, nil, func(t *testing.T, s *settings) { require.Equal(t, "debug", s.Log.Level) }},
		{"no debug", []string{"--debug=false"}, nil, func(t *testing.T, s *settings) { require.Equal(t, "warn", s.Log.Level) }},
		{"trace", []string{"--debug", "--trace"}, nil, func(t *testing.T, s *settings) {
			require.Equal(t, "trace", s.Log.Level)
			require.Len(t, s.warnings, 1)
		}},
		{"level over debug", []string{"--debug", "--log-level=error"}, nil, func(t *testing.T, s *settings) { require.Equal(t, "error", s.Log.Level) }},
		{"environment", nil, map[string]string{"BUILDKITD_LOG_LEVEL": "error", "BUILDKITD_DEBUGADDR": "127.0.0.1:9"}, func(t *testing.T, s *settings) {
			require.Equal(t, "error", s.Log.Level)
			require.Equal(t, "127.0.0.1:9", s.GRPC.DebugAddress)
		}},
		{"containerd's flags", []string{"--containerd-worker=false", "--containerd-worker-addr=/x", "--containerd-worker-gc=false"}, nil, func(t *testing.T, s *settings) {
			require.Len(t, s.warnings, 2)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			s, err := parse(t, file, c.args...)
			require.NoError(t, err)
			c.check(t, s)
		})
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, file, want string
		args             []string
	}{
		{"the containerd worker", "", "no containerd worker", []string{"--containerd-worker=true"}},
		{"the containerd worker by config", "[worker.containerd]\nenabled = true", "no containerd worker", nil},
		{"a switch that is none", "", "neither true, false nor auto", []string{"--oci-worker=perhaps"}},
		{"an unknown entitlement", "", "invalid entitlement", []string{"--allow-insecure-entitlement=everything"}},
		{"a label without value", "", "invalid value", []string{"--oci-worker-labels=a"}},
		{"a group that is not there", "", "unknown group", []string{"--group=no-such-group-here"}},
		{"sizes that are none", "", "failed to parse free storage", []string{"--oci-worker-gc-keepstorage=1,x"}},
		{"a config that is no TOML", "root =", "failed to parse config", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(t, c.file, c.args...)
			require.ErrorContains(t, err, c.want)
		})
	}
	s, err := parse(t, "[worker.containerd]\nenabled = true", "--containerd-worker=false")
	require.NoError(t, err, "the flag wins")
	require.False(t, *s.Workers.Containerd.Enabled)
	_, err = parse(t, "[worker.containerd]\nnamespace = 'x'\n[[worker.containerd.gcpolicy]]\nall = true")
	require.NoError(t, err, "a section that does not ask for the worker")
}

// parse runs the command line on a config file without starting anything.
func parse(t *testing.T, file string, args ...string) (*settings, error) {
	t.Helper()
	path := t.TempDir() + "/buildkitd.toml"
	require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
	opts := options(stockDefaults(t))
	var got *settings
	app := &cli.Command{
		Name:                      "buildkitd",
		Flags:                     opts.flags(),
		DisableSliceFlagSeparator: true,
		Action: func(_ context.Context, c *cli.Command) (err error) {
			got, err = loadSettings(c, opts)
			return err
		},
	}
	err := app.Run(t.Context(), append([]string{"buildkitd", "--config=" + path}, args...))
	return got, err
}
