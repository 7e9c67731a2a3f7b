package blob

import (
	"os"
	"testing"
)

// Waiting is the number of callers that wait for bytes.
func Waiting(b *Blob) int {
	b.entry.mu.Lock()
	defer b.entry.mu.Unlock()
	return len(b.entry.mu.demands)
}

// Flights is the number of ranges on their way.
func Flights(b *Blob) int {
	b.entry.mu.Lock()
	defer b.entry.mu.Unlock()
	return len(b.entry.mu.flights)
}

// BreakDisk makes all writes of the blob's bytes fail.
func BreakDisk(t *testing.T, b *Blob) {
	t.Helper()
	ro, err := os.Open(b.path)
	if err != nil {
		t.Fatal(err)
	}
	b.entry.mu.Lock()
	defer b.entry.mu.Unlock()
	b.entry.mu.retired = append(b.entry.mu.retired, b.entry.mu.file)
	b.entry.mu.file = ro
}
