package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/moby/buildkit/util/appdefaults"
	policy "github.com/moby/policy-helpers"
)

// readProvenanceEnv merges the JSON objects in the files *.json of a directory,
// in the order of their names: what the administrator wants in the provenance of
// every build. No directory means nothing.
func readProvenanceEnv(dir string) (map[string]any, error) {
	if dir == "" {
		dir = filepath.Join(appdefaults.ConfigDir, "provenance.d")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("provenance environment: %w", err)
	}
	env := map[string]any{}
	for _, e := range entries {
		if e.IsDir() || filepath.Ext(e.Name()) != ".json" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, &env); err != nil {
			return nil, fmt.Errorf("failed to parse %s: %w", e.Name(), err)
		}
	}
	return env, nil
}

// onceVerifier makes the verifier of signed cache entries at its first use: it
// reads trust roots, perhaps from the network.
func onceVerifier(root string) func() (*policy.Verifier, error) {
	return sync.OnceValues(func() (*policy.Verifier, error) {
		return policy.NewVerifier(policy.Config{StateDir: filepath.Join(root, "policy")})
	})
}
