// reader is the only program of lab.ReadsImage, and stands for what build steps do
// to a base: it reads files and writes the digest of each to OUT. What it can't read
// ends it with status 1. Without arguments it does nothing.
//
//	reader OUT all DIR...        every file, in the order of names
//	reader OUT some N DIR...     every Nth file, out of order
//	reader OUT careless DIR...   every file, and what can't be read is left out
//
// With PAUSE in the environment it waits for so long after each file.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return nil
	}
	out, err := os.Create(args[0])
	if err != nil {
		return err
	}
	defer out.Close()
	args = args[1:]
	pause, _ := time.ParseDuration(os.Getenv("PAUSE")) // none: no pause
	mode, dirs, step := args[0], args[1:], 1
	if mode == "some" {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return fmt.Errorf("step %q: %w", args[1], err)
		}
		step, dirs = n, args[2:]
	}
	names, err := list(dirs)
	if err != nil {
		return err
	}
	for i := 0; i < len(names); i += step {
		name := names[i]
		if step > 1 {
			name = names[i*7919%len(names)] // 7919 is prime: each once, all over the blob
		}
		sum, err := digest(name)
		if err != nil && mode == "careless" {
			continue
		}
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%x  %s\n", sum, name); err != nil {
			return err
		}
		time.Sleep(pause)
	}
	return nil
}

func list(dirs []string) (names []string, err error) {
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				names = append(names, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return names, nil
}

func digest(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
