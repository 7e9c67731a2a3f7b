package link

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// Control serves what a parent process asks of a link: GET /stats, POST /reset,
// GET and POST /shape with a Shape in JSON, POST /hold with a list of digests, and POST /tails with an object of
// Tails by digest.
func Control(c *Counter, l *Listener, h *Holder) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, c.Stats()) })
	mux.HandleFunc("POST /reset", func(http.ResponseWriter, *http.Request) { c.Reset() })
	mux.HandleFunc("GET /shape", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, l.Shape()) })
	mux.HandleFunc("POST /shape", func(w http.ResponseWriter, r *http.Request) {
		var s Shape
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			http.Error(w, fmt.Sprintf("decode the shape: %v", err), http.StatusBadRequest)
			return
		}
		l.SetShape(s)
	})
	mux.HandleFunc("POST /hold", func(w http.ResponseWriter, r *http.Request) {
		var blobs []string
		if err := json.NewDecoder(r.Body).Decode(&blobs); err != nil {
			http.Error(w, fmt.Sprintf("decode the digests: %v", err), http.StatusBadRequest)
			return
		}
		h.Hold(blobs...)
	})
	mux.HandleFunc("POST /tails", func(w http.ResponseWriter, r *http.Request) {
		var tails map[string]Tail
		if err := json.NewDecoder(r.Body).Decode(&tails); err != nil {
			http.Error(w, fmt.Sprintf("decode the tails: %v", err), http.StatusBadRequest)
			return
		}
		c.AddTails(tails)
	})
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // the client sees a short body
}
