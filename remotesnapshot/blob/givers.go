package blob

import "slices"

// givers remember which candidates bytes came from, to know whom to mistrust when
// they prove wrong: chunks are verified soon after they have come. Only the latest
// are remembered.
type givers struct{ last []gift }

// gift is a range, and the key and the host of the candidate that it is from.
type gift struct {
	span
	from, host string
}

const maxGivers = 1024

// add notes that c has sent the bytes of s.
func (g *givers) add(s span, c *candidate) {
	from := c.key()
	if n := len(g.last); n > 0 && g.last[n-1].from == from && g.last[n-1].hi == s.lo {
		g.last[n-1].hi = s.hi
		return
	}
	if len(g.last) == maxGivers {
		g.last = slices.Delete(g.last, 0, maxGivers/2)
	}
	g.last = append(g.last, gift{s, from, c.Host})
}

// blame counts a lie for each candidate that bytes of s are from, once each, and
// forgets where those came from. It returns the names of their hosts, in order.
func (g *givers) blame(s span, lies *map[string]int) (hosts []string) {
	blamed := map[string]bool{}
	g.last = slices.DeleteFunc(g.last, func(o gift) bool {
		if !o.overlaps(s) {
			return false
		}
		if !slices.Contains(hosts, o.host) {
			hosts = append(hosts, o.host)
		}
		blamed[o.from] = true
		return o.lo >= s.lo && o.hi <= s.hi
	})
	for from := range blamed {
		if *lies == nil {
			*lies = map[string]int{}
		}
		(*lies)[from]++
	}
	slices.Sort(hosts)
	return hosts
}
