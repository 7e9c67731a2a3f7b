package fuse

import "sync/atomic"

// op names a kind of FUSE message in the counters.
type op int

const (
	opLookup op = iota
	opForget
	opGetattr
	opReadlink
	opOpen
	opOpendir
	opRead
	opReaddir
	opReaddirplus
	opGetxattr
	opListxattr
	opStatfs
	opStore // not a request: chunks put into the page cache
	opOther // what a read-only file system refuses
	opCount
)

var opNames = [opCount]string{
	"LOOKUP", "FORGET", "GETATTR", "READLINK", "OPEN", "OPENDIR", "READ",
	"READDIR", "READDIRPLUS", "GETXATTR", "LISTXATTR", "STATFS", "STORE", "OTHER",
}

// counters count the messages of one mount.
type counters [opCount]atomic.Uint64

func (c *counters) addTo(sum map[string]uint64) {
	for i := range c {
		if n := c[i].Load(); n != 0 {
			sum[opNames[i]] += n
		}
	}
}
