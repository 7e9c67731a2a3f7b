package main

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"time"

	"github.com/lazykit/lazykit/hack/lab/fault"
)

// moment is when in a build a fault strikes.
type moment string

const (
	resolving moment = "manifest" // while the manifest is resolved
	opening   moment = "toc"      // while tables of contents are fetched
	running   moment = "run"      // in the middle of a RUN's reads
	exporting moment = "export"   // while an export fetches what is missing
)

var moments = []moment{resolving, opening, running, exporting}

// work is what the build does.
type work string

const (
	some  work = "some files"
	all   work = "all files"
	image work = "image"
)

// where is which way to the registry has the fault.
type where int

const (
	registry where = iota // the only way
	first                 // the first of two mirrors
	nowhere               // the first of two mirrors is a name that does not exist
	other                 // another registry, from which another build reads at the same time
)

// kind is one way in which a registry goes wrong.
type kind struct {
	name  string
	fault fault.Fault
	at    where
	front fault.Options // of the way that has the fault
	only  []moment      // where it makes sense; none: everywhere
	short []moment      // in the bounded form; none: in the middle of a RUN
	extra time.Duration // how much more time the build may take
	pause bool          // the RUN pauses after each file, so that it lasts
	long  bool          // not in the bounded form
}

// breaks says whether the proxy is told of a fault: others are in its options, or the
// daemon's.
func (k kind) breaks() bool { return !reflect.ValueOf(k.fault).IsZero() }

// burst is a fault of many requests in a row.
func burst(status int) kind {
	return kind{name: fmt.Sprintf("burst of %d", status), fault: fault.Fault{Status: status, Times: 12}, short: []moment{running}}
}

// kinds are all that the registry does wrong, in the order.
func kinds() []kind {
	with := func(k kind, short ...moment) kind { k.short = short; return k }
	named := func(name string, f fault.Fault) kind { return kind{name: name, fault: f} }
	mirror := func(name string, f fault.Fault) kind {
		return kind{name: "one mirror of two " + name, fault: f, at: first}
	}
	for3s := 3 * time.Second
	return []kind{
		{name: "nothing", short: []moment{running, exporting}},
		with(burst(429), running, opening),
		{name: "burst of 429 with Retry-After", fault: fault.Fault{Status: 429, RetryAfter: "1", Times: 5}, short: []moment{running, resolving}},
		burst(500), burst(501), burst(502), with(burst(503), moments...), burst(504),
		with(named("refused for 3 s", fault.Fault{Refuse: true, For: for3s}), moments...),
		{name: "gone for 2 min", fault: fault.Fault{Refuse: true, For: 2 * time.Minute}, only: []moment{running}, extra: 3 * time.Minute, long: true},
		{name: "hangs for 2 min", fault: fault.Fault{Hang: true, For: 2 * time.Minute}, only: []moment{running}, extra: 3 * time.Minute, long: true},
		with(named("burst of resets", fault.Fault{Reset: true, Times: 10}), running, resolving),
		with(named("burst of cuts", fault.Fault{Cut: true, Times: 10}), moments...),
		with(named("stalled once", fault.Fault{Stall: true, Times: 1}), running, resolving),
		with(named("hangs once", fault.Fault{Hang: true, Times: 1}), running),
		named("slow start, 4 s each", fault.Fault{Delay: 4 * time.Second, Times: 2}),
		{name: "slow start, 15 s each", fault: fault.Fault{Delay: 15 * time.Second, Times: 3}, extra: time.Minute, long: true},
		with(named("a byte a second, once", fault.Fault{Drip: true, Times: 1}), running),
		{name: "name does not resolve", at: nowhere, short: []moment{running}},
		{name: "token of 1 s", front: fault.Options{TokenTTL: time.Second}, pause: true, only: []moment{running, exporting}, short: []moment{running}},
		{name: "burst of 503 from the token server", front: fault.Options{TokenTTL: time.Second}, pause: true, fault: fault.Fault{On: []fault.Kind{fault.Token}, Skip: 2, Status: 503, Times: 4}, only: []moment{running}},
		{name: "redirects of 300 ms", front: fault.Options{RedirectTTL: 300 * time.Millisecond}, pause: true, only: []moment{running, exporting}, short: []moment{running}},
		named("burst of wrong Content-Range", fault.Fault{Range: "bytes 1-2/3", Times: 5}),
		named("burst of short bodies", fault.Fault{Short: true, Times: 5}),
		named("burst of long bodies", fault.Fault{Long: true, Times: 5}),
		with(named("200 for a range", fault.Fault{Whole: true}), running, exporting),
		with(named("a flipped byte once", fault.Fault{Flip: true, Times: 1}), moments...),
		with(named("a flipped byte, 3 times", fault.Fault{Flip: true, Times: 3}), running),
		with(named("swapped bytes once", fault.Fault{Swap: true, Times: 1}), running),
		with(mirror("dead", fault.Fault{On: any, Refuse: true}), running),
		with(mirror("dies", fault.Fault{Refuse: true}), running),
		with(mirror("flips bytes for ever", fault.Fault{On: any, Flip: true}), running, exporting),
		with(mirror("swaps bytes for ever", fault.Fault{On: any, Swap: true}), running),
		with(mirror("hangs", fault.Fault{Hang: true}), running),
		with(mirror("drips", fault.Fault{Drip: true}), running),
		with(mirror("answers 503", fault.Fault{On: any, Status: 503}), running),
		{name: "another registry hangs", fault: fault.Fault{Hang: true}, at: other, only: []moment{running}},
	}
}

// any are all requests for an image.
var any = []fault.Kind{fault.Manifest, fault.TOC, fault.Data}

// cell is one build with one fault.
type cell struct {
	fault  kind
	moment moment
	work   work
}

func (c cell) name() string { return fmt.Sprintf("%s, %s, %s", c.fault.name, c.moment, c.work) }

// struck is the fault as the proxy wants it: at its moment, and in the middle of it.
func (c cell) struck() fault.Fault {
	f := c.fault.fault
	if f.On != nil {
		return f
	}
	switch c.moment {
	case resolving:
		f.On = []fault.Kind{fault.Manifest}
	case opening:
		f.On = []fault.Kind{fault.TOC}
	default:
		f.On, f.Skip = []fault.Kind{fault.Data}, 3
	}
	return f
}

// shortBurst is how many requests in a row go wrong in the bounded form.
const shortBurst = 4

// cells is the matrix.
func cells(o options) (out []cell) {
	for _, k := range kinds() {
		at := k.only
		if at == nil {
			at = moments
		}
		if o.short {
			// Pauses grow with each try.
			k.fault.Times = min(k.fault.Times, shortBurst)
			at = k.short
			if at == nil {
				at = []moment{running}
			}
			if k.long {
				at = nil
			}
		}
		for _, m := range at {
			works := []work{some, all}
			if m != running {
				works = works[:1]
			}
			if m == exporting {
				works = []work{image}
			}
			if o.short {
				works = works[:1]
			}
			for _, w := range works {
				if c := (cell{k, m, w}); o.match == "" || contains(c.name(), strings.Split(o.match, ",")) {
					out = append(out, c)
				}
			}
		}
	}
	return out
}

func contains(name string, words []string) bool {
	for _, w := range words {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}

// randomCell is any fault, of any strength, at any moment.
func randomCell(rnd *rand.Rand) cell {
	all := cells(options{})
	c := all[rnd.IntN(len(all))]
	if f := &c.fault.fault; f.Times > 0 {
		f.Times = 1 + rnd.IntN(20)
		if f.Flip || f.Swap || f.Drip || f.Stall || f.Hang || f.Delay > 0 {
			f.Times = 1 + rnd.IntN(3) // each costs seconds, or one of few tries
		}
		c.fault.name += fmt.Sprintf(" (here: %d)", f.Times)
	}
	return c
}
