package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/appdefaults"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/sys/userns"
	"github.com/urfave/cli/v3"
)

// settings are the config file with the flags over it.
type settings struct {
	config.Config
	saveCacheDebug bool
	// warnings wait for the logger, which the settings configure.
	warnings []string
}

func (s *settings) warn(msg string) { s.warnings = append(s.warnings, msg) }

func configFlag() cli.Flag {
	return &cli.StringFlag{Name: "config", Usage: "path to config file", Value: defaultConfigPath()}
}

func defaultConfigPath() string {
	dir := appdefaults.ConfigDir
	if rootlessDefaults() {
		dir = appdefaults.UserConfigDir()
	}
	return filepath.Join(dir, "buildkitd.toml")
}

// defaultConfig is what flags default to: the default config file, where there is
// one, and stock's values for what it leaves out. A file that can't be opened is
// a warning, one that can't be parsed an error.
func defaultConfig() (settings, error) {
	cfg, err := config.LoadFile(defaultConfigPath())
	if err != nil {
		var pe *fs.PathError
		if !errors.As(err, &pe) {
			return settings{}, err
		}
		bklog.L.Warnf("failed to load default config: %v", err)
	}
	s := settings{Config: cfg}
	setDefaults(&s.Config)
	return s, nil
}

// loadSettings reads the config file that the command line names and puts the
// flags over it.
func loadSettings(c *cli.Command, opts optionTable) (*settings, error) {
	cfg, err := config.LoadFile(c.String("config"))
	if err != nil {
		return nil, err
	}
	s := &settings{Config: cfg}
	if cfg.Debug { //nolint:staticcheck // deprecated, and still honoured
		s.warn("'debug' configuration option is deprecated, use 'log.level = \"debug\"' instead")
	}
	if cfg.Trace { //nolint:staticcheck // deprecated, and still honoured
		s.warn("'trace' configuration option is deprecated, use 'log.level = \"trace\"' instead")
	}
	setDefaults(&s.Config)
	if err := opts.apply(c, s); err != nil {
		return nil, err
	}
	if s.GRPC.UID == nil {
		s.GRPC.UID = ptr(os.Getuid())
	}
	if s.GRPC.GID == nil {
		s.GRPC.GID = ptr(os.Getgid())
	}
	return s, refuseContainerd(s)
}

// setDefaults fills in what a config file leaves out.
func setDefaults(cfg *config.Config) {
	rootless := rootlessDefaults()
	if cfg.Root == "" {
		cfg.Root = appdefaults.Root
		if rootless {
			cfg.Root = appdefaults.UserRoot()
		}
	}
	if len(cfg.GRPC.Address) == 0 {
		cfg.GRPC.Address = []string{appdefaults.Address}
		if rootless {
			cfg.GRPC.Address = []string{appdefaults.UserAddress()}
		}
	}
	if rootless {
		if err := appdefaults.EnsureUserAddressDir(); err != nil {
			bklog.L.Debugf("directory of the default address: %v", err)
		}
	}
	oci, ctd := &cfg.Workers.OCI, &cfg.Workers.Containerd
	if oci.Platforms == nil {
		oci.Platforms = formatPlatforms(archutil.SupportedPlatforms(false))
	}
	if ctd.Platforms == nil {
		ctd.Platforms = oci.Platforms
	}
	if oci.Snapshotter == "" {
		oci.Snapshotter = "auto"
	}
	setNetworkDefaults(&oci.NetworkConfig, rootless)
	setNetworkDefaults(&ctd.NetworkConfig, rootless)
	if cfg.OTEL.SocketPath == "" {
		cfg.OTEL.SocketPath = appdefaults.TraceSocketPath(rootless)
	}
	if len(cfg.CDI.SpecDirs) == 0 {
		cfg.CDI.SpecDirs = appdefaults.CDISpecDirs
	}
}

func setNetworkDefaults(nc *config.NetworkConfig, rootless bool) {
	cniConfig := appdefaults.DefaultCNIConfigPath
	if rootless {
		cniConfig = appdefaults.UserCNIConfigPath
	}
	for _, d := range []struct {
		field *string
		value string
	}{
		{&nc.Mode, "auto"},
		{&nc.CNIConfigPath, cniConfig},
		{&nc.CNIBinaryPath, appdefaults.DefaultCNIBinDir},
		{&nc.BridgeName, appdefaults.BridgeName},
		{&nc.BridgeSubnet, appdefaults.BridgeSubnet},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
}

// rootlessDefaults says whether paths default to places under the user's home and
// runtime directories: in a user namespace, unless $USER says that the daemon was
// meant to be the namespace's root.
func rootlessDefaults() bool {
	u := os.Getenv("USER")
	return userns.RunningInUserNS() && u != "" && u != "root"
}

// lookupGID reads a number, or the name of a group.
func lookupGID(group string) (int, error) {
	id, err := strconv.Atoi(group)
	if err == nil {
		return id, nil
	}
	if !errors.Is(err, strconv.ErrSyntax) {
		return 0, fmt.Errorf("group %s: %w", group, err)
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// triState shows a switch that the daemon may decide itself.
func triState(b *bool) string {
	if b == nil {
		return "auto"
	}
	return strconv.FormatBool(*b)
}

// parseTriState is nil for "auto" and for nothing.
func parseTriState(s string) (*bool, error) {
	if s == "" || strings.EqualFold(s, "auto") {
		return nil, nil
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		return nil, fmt.Errorf("%q is neither true, false nor auto: %w", s, err)
	}
	return &b, nil
}

// parseLabels reads key=value pairs.
func parseLabels(pairs []string) (map[string]string, error) {
	labels := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, fmt.Errorf("invalid value %s", p)
		}
		labels[k] = v
	}
	return labels, nil
}

func ptr[T any](v T) *T { return &v }
