package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v3"

	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

const profileHelp = `An access profile says which ranges of a layer's blob a build step has read, in
their order. buildkitd writes them by itself and fetches what they name when the
same command runs again on the same layer. They hold digests and offsets, no file
names and no contents.

To give what one machine has learned to another one:

   lazyctl profile export -o base.profiles
   lazyctl profile import base.profiles        # on the other machine

A daemon need not be stopped for either.`

func profileCommand() *cli.Command {
	dir := func() cli.Flag {
		return &cli.StringFlag{
			Name:  "dir",
			Usage: "directory of the profiles, profile_dir in buildkitd.toml",
			Value: "/var/lib/buildkit/runc-stargz/lazy/profiles",
		}
	}
	return &cli.Command{
		Name:        "profile",
		Usage:       "access profiles of layers",
		Description: profileHelp,
		Commands: []*cli.Command{
			{Name: "list", Usage: "list the layers and what is known of them", Flags: []cli.Flag{dir()}, Action: listProfiles},
			{
				Name: "export", Usage: "write profiles to a file", ArgsUsage: "[LAYER-DIGEST...]",
				Description: "Without digests, all profiles are written.",
				Flags: []cli.Flag{dir(), &cli.StringFlag{
					Name: "output", Aliases: []string{"o"}, Usage: "file to write; - is the standard output", Value: "-",
				}},
				Action: exportProfiles,
			},
			{
				Name: "import", Usage: "read profiles from a file", ArgsUsage: "FILE",
				Description: "FILE is what export wrote; - is the standard input. Of a step that is known on\nboth sides, what was used last is kept.",
				Flags:       []cli.Flag{dir()}, Action: importProfiles,
			},
		},
	}
}

// openProfiles opens a directory that must exist.
func openProfiles(c *cli.Command) (*profile.Store, error) {
	dir := c.String("dir")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no access profiles in %s: name the daemon's directory with --dir", dir)
	}
	return profile.Open(dir)
}

func listProfiles(_ context.Context, c *cli.Command) error {
	if c.Args().Present() {
		return fmt.Errorf("list takes no argument, and got %q", c.Args().First())
	}
	s, err := openProfiles(c)
	if err != nil {
		return err
	}
	layers, err := s.Layers()
	w := tabwriter.NewWriter(c.Root().Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LAYER\tSTEP\tRANGES\tBYTES\tLAST USED")
	for _, l := range layers {
		for _, st := range l.Steps {
			var n int64
			for _, r := range st.Ranges {
				n += r.Len
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", l.Layer, st.Step.Encoded()[:12], len(st.Ranges), n, st.Used.Format(time.RFC3339))
		}
	}
	return errors.Join(w.Flush(), err)
}

func exportProfiles(_ context.Context, c *cli.Command) error {
	var layers []digest.Digest
	for _, a := range c.Args().Slice() {
		d, err := digest.Parse(a)
		if err != nil {
			return fmt.Errorf("layer digest %q: %w", a, err)
		}
		layers = append(layers, d)
	}
	s, err := openProfiles(c)
	if err != nil {
		return err
	}
	n, err := exportTo(s, c.String("output"), c.Root().Writer, layers)
	if err != nil {
		return err
	}
	if n < max(1, len(layers)) {
		return fmt.Errorf("%d of %d layers have an access profile in %s", n, len(layers), c.String("dir"))
	}
	fmt.Fprintf(c.Root().ErrWriter, "exported the access profiles of %d layers\n", n)
	return nil
}

// exportTo writes to path, which appears whole or not at all.
func exportTo(s *profile.Store, path string, stdout io.Writer, layers []digest.Digest) (n int, err error) {
	if path == "-" {
		return s.Export(stdout, layers...)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return 0, fmt.Errorf("export access profiles: %w", err)
	}
	n, err = s.Export(f, layers...)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the error that counts is known
	}
	return n, err
}

func importProfiles(_ context.Context, c *cli.Command) error {
	if c.Args().Len() != 1 {
		return errors.New("import takes one file: lazyctl profile import FILE")
	}
	s, err := profile.Open(c.String("dir")) // a machine that has not built yet has none
	if err != nil {
		return err
	}
	in := c.Root().Reader
	if path := c.Args().First(); path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("import access profiles: %w", err)
		}
		defer f.Close()
		in = f
	}
	n, err := s.Import(in)
	if err != nil {
		return fmt.Errorf("%s: %w (%d layers were imported before it)", c.Args().First(), err, n)
	}
	fmt.Fprintf(c.Root().ErrWriter, "imported the access profiles of %d layers\n", n)
	return nil
}
