package main

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of the rows of ours, over the link of 30 ms.
const (
	maxWaiting        = 0.4 // of stock stargz's waiting
	maxWaitingProfile = 0.15
	maxFloor          = 2.0 // times the floor, with a profile
	maxData           = 0.5 // of stock stargz's data requests
	maxDataProfile    = 25
	maxDataTrips      = 2   // round trips within which they are issued, with a profile
	maxBytes          = 1.6 // times the bytes of the chunks that are read
	maxBytesProfile   = 1.35
	maxFar            = 2.0 // times the waiting over the link of 30 ms, at 80 ms
)

// check compares ours with stock stargz, case by case, and holds it against the
// bounds.
func (r *report) check() error {
	if r.limits {
		return r.checkFloors()
	}
	errs := []error{r.checkBounds()}
	for _, ours := range r.Medians {
		if ours.Variant != "ours" && ours.Variant != "ours-profile" || ours.N == 0 {
			continue
		}
		name := ours.Network + " " + ours.Workload + " " + ours.Variant
		const memory = 100e6
		if ours.MemMax >= memory {
			errs = append(errs, fmt.Errorf("%s: it used %.1f MB of anonymous memory", name, float64(ours.MemMax)/1e6))
		}
		for _, stock := range r.Medians {
			if stock.Variant != "stock-stargz" || stock.Network != ours.Network || stock.Workload != ours.Workload || stock.N == 0 {
				continue
			}
			if ours.Seconds > stock.Seconds {
				errs = append(errs, fmt.Errorf("%s: it took %.2f s, stock %.2f s", name, ours.Seconds, stock.Seconds))
			}
			if ours.Layers+ours.Others >= stock.Layers+stock.Others {
				errs = append(errs, fmt.Errorf("%s: it sent %d requests, stock %d", name, ours.Layers+ours.Others, stock.Layers+stock.Others))
			}
			// A profile may cost bytes to spare requests: its bound is on the chunks read.
			if ours.Variant == "ours" && ours.Bytes >= stock.Bytes {
				errs = append(errs, fmt.Errorf("%s: it received %d bytes, stock %d", name, ours.Bytes, stock.Bytes))
			}
		}
	}
	return errors.Join(errs...)
}

// checkFloors holds rows with a profile against the floor.
func (r *report) checkFloors() error {
	var errs []error
	for _, m := range r.Medians {
		if m.Variant == "ours-profile" && m.N > 0 {
			errs = append(errs, m.checkFloor()...)
		}
	}
	return errors.Join(errs...)
}

func (m median) checkFloor() []error {
	if m.Floor == 0 {
		return nil
	}
	return m.broken(atMost("seconds of waiting, beside the floor", m.Waiting, maxFloor*m.Floor))
}

// broken names the row in what its promises say.
func (m median) broken(all ...promise) (errs []error) {
	for _, text := range broken(all...) {
		errs = append(errs, fmt.Errorf("%s %s %s: %s", m.Network, m.Workload, m.Variant, text))
	}
	return errs
}

// checkBounds holds ours against what was promised for the link of 30 ms, and the
// link of 80 ms against that.
func (r *report) checkBounds() error {
	var errs []error
	for _, net := range r.networks {
		for _, m := range r.Medians {
			if m.Network != net.id || m.N == 0 {
				continue
			}
			row := r.row(m.Network, m.Workload)
			switch {
			case net.id == "shaped" && m.Variant == "ours":
				errs = append(errs, m.checkFirst(row)...)
			case net.id == "shaped" && m.Variant == "ours-profile":
				errs = append(errs, m.checkProfile(row, net.shape.RTT)...)
			case net.id == "far" && (m.Variant == "ours" || m.Variant == "ours-profile"):
				if near := find(r.row("shaped", m.Workload), m.Variant); near != nil && near.Waiting > 0 {
					errs = append(errs, m.broken(atMost("seconds of waiting, beside the link of 30 ms", m.Waiting, maxFar*near.Waiting))...)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// row are the medians of one build over one link.
func (r *report) row(network, workload string) (row []median) {
	for _, m := range r.Medians {
		if m.Network == network && m.Workload == workload {
			row = append(row, m)
		}
	}
	return row
}

func (m median) checkFirst(row []median) []error {
	var all []promise
	if stock := find(row, "stock-stargz"); stock != nil {
		all = append(all, atMost("data requests, beside stock stargz", float64(m.Data), maxData*float64(stock.Data)))
		if stock.Waiting > 0 {
			all = append(all, atMost("waiting by stock stargz's", m.OfStock, maxWaiting))
		}
	}
	if m.Chunks > 0 {
		all = append(all, atMost("bytes over bytes of the chunks read", m.overhead(), maxBytes))
	}
	return m.broken(all...)
}

func (m median) checkProfile(row []median, rtt time.Duration) []error {
	all := []promise{
		atMost("data requests", float64(m.Data), maxDataProfile),
		atMost("seconds from the first data request to the last", m.DataSpan, maxDataTrips*rtt.Seconds()),
	}
	if stock := find(row, "stock-stargz"); stock != nil && stock.Waiting > 0 {
		all = append(all, atMost("waiting by stock stargz's", m.OfStock, maxWaitingProfile))
	}
	if m.Chunks > 0 {
		all = append(all, atMost("bytes over bytes of the chunks read", m.overhead(), maxBytesProfile))
	}
	errs := m.broken(all...)
	if find(row, "warm-overlayfs") != nil {
		errs = append(errs, m.checkFloor()...)
	}
	return errs
}

// overhead is what was received of layer contents, by what had to be.
func (m median) overhead() float64 { return float64(m.DataSize) / float64(m.Chunks) }
