package worker

import (
	"errors"
	"fmt"
	"time"
)

// Stalled says for how long reads of lazy layers have been asking some registry
// in vain; 0 when none has. A build behind such a read may never end.
func (w *Worker) Stalled() time.Duration {
	if w.parts.storage.stalled == nil {
		return 0
	}
	return w.parts.storage.stalled()
}

// Abort makes reads of lazy layers fail, so that steps which are stuck in them
// can be killed. It is for a daemon that stops without waiting for its builds:
// the worker can't run further steps on lazy layers afterwards.
func (w *Worker) Abort() {
	if w.parts.storage.abort != nil {
		w.parts.storage.abort()
	}
}

// Close ends the worker in the order of the package comment; steps should have
// ended. Later calls return the first one's error.
func (w *Worker) Close() error {
	w.closing.Do(func() {
		errs := []error{w.Worker.Close()} // closes the records and the execution, too
		// Overlay mounts of steps go first: they hold the FUSE mounts below them.
		errs = append(errs, sweepMounts(w.dir))
		errs = append(errs, w.parts.closeStorage())
		if w.err = errors.Join(errs...); w.err == nil {
			w.err = end(w.dir)
		}
	})
	return w.err
}

// closeStorage closes the snapshotter before the database over it: nothing calls
// it any more, and what it still does in the background needs no database.
func (p *parts) closeStorage() error {
	var errs []error
	if p.storage.close != nil {
		if err := p.storage.close(); err != nil {
			errs = append(errs, fmt.Errorf("close snapshotter %s: %w", p.storage.name, err))
		}
	}
	if p.dbs != nil {
		errs = append(errs, p.dbs.closeContainerd())
	}
	return errors.Join(errs...)
}

// abandon closes the parts of a worker that could not be made.
func (p *parts) abandon() error {
	var errs []error
	if p.dbs != nil {
		errs = append(errs, p.dbs.records.Close())
	}
	errs = append(errs, p.closeStorage())
	if p.exec != nil {
		errs = append(errs, p.exec.Close())
	}
	return errors.Join(errs...)
}
