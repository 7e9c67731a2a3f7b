package cachetest

import (
	"fmt"
	"strings"

	bkcache "github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/util/compression"
	"github.com/stretchr/testify/require"
)

var faultTests = []test{
	{name: "each call of New fails", only: onPlain, run: faultsIn(func(e *env) error {
		m, err := e.cache.New(e.ctx, e.faultyBase(), nil)
		if err != nil {
			return err
		}
		keep(e, m)
		_, err = m.Mount(e.ctx, false, nil)
		return err
	})},
	{name: "each call of GetByBlob fails", only: onPlain, run: faultsIn(func(e *env) error {
		a, b := e.gz(file("a", "1")), e.gz(file("b", "1"))
		_, handlers := e.remote(a, b)
		base := e.quietly(func() bkcache.ImmutableRef { return e.pull(a, nil, handlers) })
		r, err := e.cache.GetByBlob(e.ctx, b.desc, base, handlers)
		if err != nil {
			return err
		}
		return keep(e, r).Extract(e.ctx, nil)
	})},
	{name: "each call of Finalize fails", only: onPlain, run: faultsIn(func(e *env) error {
		r := e.quietly(func() bkcache.ImmutableRef { return e.step(nil, file("a", "1")) })
		return r.Finalize(e.ctx)
	})},
	{name: "each call of Merge fails", only: onPlain, run: faultsIn(func(e *env) error {
		a, b := e.faultyBase(), e.quietly(func() bkcache.ImmutableRef { return e.step(nil, file("b", "1")) })
		m, err := e.cache.Merge(e.ctx, []bkcache.ImmutableRef{a, b}, nil)
		if err != nil {
			return err
		}
		_, err = keep(e, m).Mount(e.ctx, true, nil)
		return err
	})},
	{name: "each call of Diff fails", only: onPlain, run: faultsIn(func(e *env) error {
		var a, c bkcache.ImmutableRef
		e.quietly(func() bkcache.ImmutableRef {
			a = e.step(nil, file("a", "1"))
			c = e.step(e.step(a, file("b", "1")), file("c", "1"))
			return c
		})
		d, err := e.cache.Diff(e.ctx, a, c, nil)
		if err != nil {
			return err
		}
		_, err = keep(e, d).Mount(e.ctx, true, nil)
		return err
	})},
	{name: "each call of GetRemotes fails", only: onPlain, run: faultsIn(func(e *env) error {
		r := e.quietly(func() bkcache.ImmutableRef { return e.step(e.step(nil, file("a", "1")), file("b", "1")) })
		_, err := r.GetRemotes(e.ctx, true, cacheconfig.RefConfig{Compression: forced(compression.Zstd)}, false, nil)
		return err
	})},
}

// faultyBase is a lazy layer.
func (e *env) faultyBase() bkcache.ImmutableRef {
	e.t.Helper()
	return e.quietly(func() bkcache.ImmutableRef {
		l := e.gz(file("base", "1"))
		_, handlers := e.remote(l)
		return e.pull(l, nil, handlers)
	})
}

// quietly runs f without faults, whose count goes on afterwards.
func (e *env) quietly(f func() bkcache.ImmutableRef) bkcache.ImmutableRef {
	e.t.Helper()
	e.faults.pause(true)
	defer e.faults.pause(false)
	return f()
}

// maxFaults bounds the number of calls of one operation.
const maxFaults = 200

// faultsIn runs an operation again and again: first its first call of what is below
// fails, then its second one, until all have. Each time nothing may be left.
func faultsIn(op func(*env) error) func(*env) {
	return func(e *env) {
		var leaks []string
		for n, hit := 1, true; hit; n++ {
			require.Less(e.t, n, maxFaults)
			e.faults.set(func(_ string, i int) bool { return i == n })
			err := op(e)
			var call string
			call, hit = e.faults.hit()
			e.faults.set(nil)
			if !hit {
				require.NoError(e.t, err)
			}
			e.releaseAll()
			e.endTemporaryLeases() // one that could not be deleted expires
			if left := e.leftovers(); left != "" {
				leaks = append(leaks, fmt.Sprintf("call %d, of %s: %s", n, call, strings.ReplaceAll(left, "\n", "; ")))
				if e.impl.has(LeaksOnFaults) {
					e.t.Log(leaks[0])
					e.renew()
					return // one will do; not each of these tests finds one
				}
				e.renew()
			}
		}
		require.Empty(e.t, leaks, "what is left after a fault")
	}
}
