// Prog is what a build step of the tests runs: it writes a greeting to the file
// that it is told.
package main

import "os"

func main() {
	if err := os.WriteFile(os.Args[1], []byte("hello from a step\n"), 0o644); err != nil {
		panic(err)
	}
}
