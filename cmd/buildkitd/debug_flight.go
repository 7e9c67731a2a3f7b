package main

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/exp/trace"
)

// flightRecorder keeps the last seconds of the Go runtime's trace, to be fetched
// after something odd has been seen.
type flightRecorder struct {
	mu struct {
		sync.Mutex
		*trace.FlightRecorder
	}
}

func newFlightRecorder() *flightRecorder {
	r := &flightRecorder{}
	r.mu.FlightRecorder = trace.NewFlightRecorder()
	return r
}

func (r *flightRecorder) register(m *http.ServeMux) {
	const path = "/debug/flight/trace"
	m.HandleFunc("POST "+path+"/start", r.start)
	m.HandleFunc("POST "+path+"/stop", r.stop)
	m.HandleFunc("POST "+path+"/set_period", r.setPeriod)
	m.HandleFunc("GET "+path, r.write)
}

func (r *flightRecorder) start(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.Enabled() {
		http.Error(w, "flight recorder is already running", http.StatusConflict)
	} else if err := r.mu.Start(); err != nil {
		http.Error(w, fmt.Sprintf("could not start flight recorder: %s", err), http.StatusInternalServerError)
	}
}

func (r *flightRecorder) stop(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.mu.Enabled() {
		http.Error(w, "flight recorder is not running", http.StatusConflict)
	} else if err := r.mu.Stop(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func (r *flightRecorder) setPeriod(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.Enabled() {
		http.Error(w, "flight recorder is running, stop it to change its period", http.StatusPreconditionFailed)
		return
	}
	period, err := time.ParseDuration(req.FormValue("period"))
	if err != nil {
		http.Error(w, fmt.Sprintf("invalid flight recorder period: %s", err), http.StatusBadRequest)
		return
	}
	r.mu.SetPeriod(period)
}

func (r *flightRecorder) write(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="trace"`)
	if _, err := r.mu.WriteTo(w); err != nil {
		http.Error(w, fmt.Sprintf("could not write in-flight trace: %s", err), http.StatusInternalServerError)
	}
}
