package main

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/util/cachedigest"
	"github.com/moby/buildkit/util/cachestore"
)

// printDigest writes what a digest was made of, its parts below it.
func printDigest(w io.Writer, rec *cachedigest.Record) {
	fmt.Fprintf(w, "%s (%s):\n", rec.Digest, rec.Type)
	for _, part := range rec.SubRecords {
		fmt.Fprintf(w, "  %s (%s):\n", part.Digest, part.Type)
	}
	for _, frame := range rec.Data {
		switch frame.ID {
		case cachedigest.FrameIDData:
			fmt.Fprintf(w, "  %s: %s\n", frame.ID, frame.Data)
		case cachedigest.FrameIDSkip:
			fmt.Fprintf(w, "  skipping %d bytes\n", binary.LittleEndian.Uint32(frame.Data))
		}
	}
	for _, part := range rec.SubRecords {
		fmt.Fprintln(w)
		printDigest(w, part)
	}
}

func printRecords(w io.Writer, recs []*explained) {
	for _, rec := range recs {
		printRecord(w, rec)
		fmt.Fprintln(w)
	}
}

func printRecord(w io.Writer, rec *explained) {
	mark := ""
	if rec.Random {
		mark = " (random)"
	}
	fmt.Fprintf(w, "ID: %d%s\n", rec.ID, mark)
	if rec.Digest != "" {
		fmt.Fprintf(w, "Digest: %s\n", rec.Digest)
	}
	printParents(w, rec.Parents)
	if len(rec.Children) > 0 {
		fmt.Fprintln(w, "Children:")
		for _, input := range slices.Sorted(maps.Keys(rec.Children)) {
			ids := make([]string, 0, len(rec.ChildIDs[input]))
			for id := range rec.ChildIDs[input] {
				ids = append(ids, fmt.Sprint(id))
			}
			fmt.Fprintf(w, "  Input %d:\t %s\n", input, strings.Join(ids, ", "))
		}
	}
	if len(rec.Debug) > 0 {
		fmt.Fprintln(w, "Plaintexts:")
		for _, made := range rec.Debug {
			printDigest(w, made)
			fmt.Fprintln(w)
		}
	}
}

func printParents(w io.Writer, parents []cachestore.Link) {
	if len(parents) == 0 {
		return
	}
	fmt.Fprintln(w, "Parents:")
	slices.SortStableFunc(parents, func(a, b cachestore.Link) int {
		return cmp.Or(cmp.Compare(a.Input, b.Input), cmp.Compare(a.Digest, b.Digest))
	})
	for _, p := range parents {
		fmt.Fprintf(w, "  Input %d:\t%d\t%s\n", p.Input, p.Record.ID, p.Digest)
		if p.Selector != "" {
			fmt.Fprintf(w, "    Selector: %s\n", p.Selector)
		}
	}
}
