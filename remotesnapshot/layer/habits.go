package layer

import "time"

// Small files that are used together lie in the same directories: the modules of
// a package, the headers of a library. Which directories are read, and how much
// of them, differs from build to build and hardly within one: of the files in a
// directory from which one is read, go build reads 98 in 100, python 28, g++ 16
// and node 4. How far away a file lies in its directory, how large the directory
// is and how large the file make no difference to rely on. So it is counted, for
// each directory and all above it, what came of the files that were fetched
// unasked, and the next window is chosen by that.
//
// A file in a directory that nothing was read from yet is another matter, and
// counted by itself: python reads 4 in 100 of those, go build 47.
//
// What may be fetched for nothing is a choice: on a fast link a round trip is worth
// megabytes, but somebody pays for the bytes. The figures below keep what a build
// receives within 1.6 times what it reads, and go as far as that for the build which
// reads the most scattered files, python. Beyond that, replays of the recorded builds
// did not choose the best figures for these builds, which owe much to chance. What
// counts more than any figure is that what was fetched counts as unread at once: to
// wait and see lets a few early hits open windows of megabytes. A replay needs, with
// a request worth 32 KiB and 64 KiB to waste, and with what is below:
//
//	          requests        MB that nobody read
//	          before  now     before  now
//	python       114   68        3.1  8.5
//	g++           77   48        2.3  4.3
//	go           185  136        2.2  5.3
//	node          38   34        1.9  3.3
//
// To know the builds beforehand would take 46, 35, 47 and 21 requests for as many
// bytes; to know only how much of each directory is read, 70, 51, 57 and 36.
const (
	// requestWorth is how many bytes one more request is worth: a neighbour is
	// taken when the chance that it spares a request is worth more than its
	// bytes, as far as they will be for nothing.
	requestWorth = 128 << 10
	// mayWaste is how many bytes of a window may be expected to be for nothing.
	// It bounds what a wrong guess costs, where many files lie beside the one that
	// is asked for.
	mayWaste = 1 << 20
	// passBad is how much of a loss a window crosses to get at what is worth it.
	passBad = 2 * requestWorth
	// farTimes is what these three are multiplied by where an answer takes farWait to begin:
	// somebody pays for the bytes all the same, but a request costs twice the time or more.
	// A replay needs 56, 44, 118 and 34 requests then, and 11.6, 5.9, 7.3 and 4.6 MB that
	// nobody reads; four times as much to waste spares one or two requests more.
	farTimes, farWait = 2, 60 * time.Millisecond
	// afterPart is the part of mayWaste for what comes after the member that is
	// asked for, if there is as much on both sides.
	afterPart = 0.6

	// prior is the chance of a neighbour where nothing is known. A directory is
	// believed as much as the one above it when it has seen so many files as
	// doubt says.
	prior = 0.1
	doubt = 32
	// askedCounts is how many neighbours that were read a file counts for which
	// had to be asked for: reads come back to a directory, and what was fetched
	// from it counts as unread until then.
	askedCounts = 4
	// askedSize is the largest member of which that is so.
	askedSize = 32 << 10
)

// Bounds of what is remembered. Beyond them everything is forgotten.
const (
	habitDirs   = 4 << 10
	habitAsides = 16 << 10
	habitDepth  = 64 // directories above one another
)

// habits are those of the readers of a layer, as far as they were seen.
type habits struct {
	dirs   map[uint32]*habit
	asides map[uint32]kind // members fetched unasked and not read yet
}

// habit is what is known of one directory and all below it.
type habit struct {
	entered bool // a file in it was asked for or read
	tallies [2]tally
}

// tally counts files that were fetched unasked, and those of them that were read.
type tally struct{ tried, read float64 }

// kind of a file that is fetched unasked.
type kind uint8

const (
	unentered kind = iota // in a directory from which nothing was read
	entered
)

func (h *habits) dir(d uint32) *habit {
	if h.dirs == nil {
		h.dirs, h.asides = map[uint32]*habit{}, map[uint32]kind{}
	}
	v := h.dirs[d]
	if v == nil {
		v = &habit{}
		h.dirs[d] = v
	}
	return v
}

// kind of the files in dir.
func (h *habits) kind(dir uint32) kind {
	if v := h.dirs[dir]; v != nil && v.entered {
		return entered
	}
	return unentered
}

// asked notes that a member of size bytes in dir has to be asked for.
func (h *habits) asked(toc table, dir uint32, size int64) {
	if len(h.dirs) > habitDirs || len(h.asides) > habitAsides {
		*h = habits{}
	}
	h.dir(dir).entered = true
	if size <= askedSize {
		h.count(toc, dir, entered, tally{askedCounts, askedCounts})
	}
}

// fetched notes that a neighbour is asked for with another member.
func (h *habits) fetched(toc table, x neighbour) {
	k := h.kind(x.dir)
	h.count(toc, x.dir, k, tally{tried: 1})
	h.asides[x.member] = k
}

// used notes that a member was read.
func (h *habits) used(toc table, m, dir uint32) {
	h.dir(dir).entered = true
	if k, ok := h.asides[m]; ok {
		delete(h.asides, m)
		h.count(toc, dir, k, tally{read: 1})
	}
}

// count adds to the tallies of a directory and of all above it.
func (h *habits) count(toc table, dir uint32, k kind, t tally) {
	lineage(toc, dir, func(d uint32) {
		sum := &h.dir(d).tallies[k]
		sum.tried += t.tried
		sum.read += t.read
	})
}

// lineage calls f with dir and the directories above it; the root comes first.
func lineage(toc table, dir uint32, f func(dir uint32)) {
	var up [habitDepth]uint32
	n := 0
	for n < len(up) {
		up[n] = dir
		n++
		parent, err := toc.Parent(dir)
		if err != nil || parent == dir {
			break
		}
		dir = parent
	}
	for n > 0 {
		n--
		f(up[n])
	}
}

// chance is how probable it is that a file in dir will be read. Each directory
// corrects what the one above it says, the more so the more it has seen.
func (h *habits) chance(toc table, dir uint32) float64 {
	p, k := prior, h.kind(dir)
	lineage(toc, dir, func(d uint32) {
		if v := h.dirs[d]; v != nil {
			t := v.tallies[k]
			p = (t.read + doubt*p) / (t.tried + doubt)
		}
	})
	return p
}

// choose says how many of the neighbours on each side a window should have, the
// nearest first. times is 1, or farTimes.
func (h *habits) choose(toc table, after, before []neighbour, times float64) (na, nb int) {
	a, b := h.worth(toc, after, times), h.worth(toc, before, times)
	wasteA, wasteB := last(a), last(b)
	most := mayWaste * times
	if wasteA+wasteB <= most {
		return len(a), len(b)
	}
	roomA := max(most*afterPart, most-wasteB)
	roomB := max(most*(1-afterPart), most-wasteA)
	return upTo(a, roomA), upTo(b, roomB)
}

// worth looks how far it is worth to go on one side. For each neighbour up to
// there it says how many bytes are probably for nothing, from the first to this.
func (h *habits) worth(toc table, side []neighbour, times float64) (waste []float64) {
	var p, gain, best, sum float64
	n := 0
	for i, x := range side {
		if i == 0 || x.dir != side[i-1].dir {
			p = h.chance(toc, x.dir)
		}
		lost := (1 - p) * float64(x.size)
		sum += lost
		gain += p*requestWorth*times - lost
		if sum > mayWaste*times || gain < best-passBad*times {
			break
		}
		waste = append(waste, sum)
		if gain > best {
			best, n = gain, i+1
		}
	}
	return waste[:n]
}

func last(waste []float64) float64 {
	if len(waste) == 0 {
		return 0
	}
	return waste[len(waste)-1]
}

// upTo is how many of rising numbers are at most limit.
func upTo(waste []float64, limit float64) (n int) {
	for n < len(waste) && waste[n] <= limit {
		n++
	}
	return n
}
