package main

import (
	"github.com/urfave/cli/v3"
)

// option is one row of the table of flags: the flag, and what it does to the
// settings that come from the config file.
type option struct {
	flag cli.Flag
	// apply is called when the flag is given, or its variable is set.
	apply func(c *cli.Command, s *settings) error
	// always calls apply without that, too.
	always bool
}

type optionTable []option

// flags are the command line's view of the table. A flag is good for one run.
func (t optionTable) flags() []cli.Flag {
	out := make([]cli.Flag, len(t))
	for i, o := range t {
		out[i] = o.flag
	}
	return out
}

// apply puts the flags over the config, in the order of the table.
func (t optionTable) apply(c *cli.Command, s *settings) error {
	for _, o := range t {
		if o.apply == nil || !o.always && !c.IsSet(o.flag.Names()[0]) {
			continue
		}
		if err := o.apply(c, s); err != nil {
			return err
		}
	}
	return nil
}

// form changes how a flag looks, or when it applies.
type form func(*option)

// hidden keeps a flag out of the help.
func hidden(when bool) form {
	return func(o *option) {
		switch f := o.flag.(type) {
		case *cli.StringFlag:
			f.Hidden = when
		case *cli.StringSliceFlag:
			f.Hidden = when
		case *cli.BoolFlag:
			f.Hidden = when
		case *cli.IntFlag:
			f.Hidden = when
		}
	}
}

// env names a variable that stands for a text flag that is not given.
func env(name string) form {
	return func(o *option) { o.flag.(*cli.StringFlag).Sources = cli.EnvVars(name) }
}

// evenDefault applies a flag's default value as if it had been given.
func evenDefault(o *option) { o.always = true }

func text(name, usage, value string, set func(*settings, string) error, forms ...form) option {
	return shape(option{
		flag:  &cli.StringFlag{Name: name, Usage: usage, Value: value},
		apply: func(c *cli.Command, s *settings) error { return set(s, c.String(name)) },
	}, forms)
}

func list(name, usage string, value []string, set func(*settings, []string) error, forms ...form) option {
	return shape(option{
		flag:  &cli.StringSliceFlag{Name: name, Usage: usage, Value: value},
		apply: func(c *cli.Command, s *settings) error { return set(s, c.StringSlice(name)) },
	}, forms)
}

func toggle(name, usage string, value bool, set func(*settings, bool) error, forms ...form) option {
	return shape(option{
		flag:  &cli.BoolFlag{Name: name, Usage: usage, Value: value},
		apply: func(c *cli.Command, s *settings) error { return set(s, c.Bool(name)) },
	}, forms)
}

func number(name, usage string, value int, set func(*settings, int) error, forms ...form) option {
	return shape(option{
		flag:  &cli.IntFlag{Name: name, Usage: usage, Value: value},
		apply: func(c *cli.Command, s *settings) error { return set(s, c.Int(name)) },
	}, forms)
}

func shape(o option, forms []form) option {
	for _, f := range forms {
		f(&o)
	}
	return o
}
