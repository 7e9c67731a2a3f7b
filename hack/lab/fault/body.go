package fault

import (
	"fmt"
	"net/http"
	"time"
)

// extra is what Long adds to a body.
var extra = make([]byte, 1000)

// answer sends the registry's answer, as far as f lets it.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, status int, body []byte, f *Fault) {
	at := p.random(len(body))
	switch {
	case f.Flip && len(body) > 0:
		body[at] ^= 0x55
	case f.Swap:
		swap(body, at)
	case f.Short:
		body = body[:at]
	case f.Long:
		body = append(body, extra...)
	case f.Range != "" && status == http.StatusPartialContent:
		w.Header().Set("Content-Range", f.Range)
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	switch {
	case f.Cut:
		w.Write(body[:at])
		http.NewResponseController(w).Flush()
		reset(w)
	case f.Stall:
		w.Write(body[:at])
		http.NewResponseController(w).Flush()
		p.wait(r, f.For)
		reset(w)
	case f.Drip:
		w.Write(body[:at])
		p.drip(w, r, body[at:], f.For)
	default:
		w.Write(body) // the client sees a short body
	}
}

// swap exchanges two different bytes of body, one of which is at.
func swap(body []byte, at int) {
	for i := range body {
		if body[i] != body[at] {
			body[i], body[at] = body[at], body[i]
			return
		}
	}
}

// drip sends a byte a second, and the rest of body after d if that is not 0.
func (p *Proxy) drip(w http.ResponseWriter, r *http.Request, body []byte, d time.Duration) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var over <-chan time.Time
	if d > 0 {
		over = time.After(d)
	}
	for len(body) > 0 {
		n := 1
		select {
		case <-tick.C:
		case <-over:
			n = len(body)
		case <-r.Context().Done():
			return
		case <-p.closing:
			return
		}
		if _, err := w.Write(body[:n]); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		body = body[n:]
	}
}
