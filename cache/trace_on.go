//go:build cachetrace

package cache

import "runtime/debug"

// acquisition is where a ref was acquired. With the build tag cachetrace each ref has
// one, so that Holders can tell who still holds a record.
type acquisition struct{ stack string }

func acquired() acquisition { return acquisition{string(debug.Stack())} }

func (t acquisition) String() string { return t.stack }
