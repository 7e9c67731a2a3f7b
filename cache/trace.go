//go:build !cachetrace

package cache

// acquisition is nothing in ordinary builds; see trace_on.go.
type acquisition struct{}

func acquired() acquisition { return acquisition{} }

func (acquisition) String() string { return "" }
