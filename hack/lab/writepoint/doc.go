// Package writepoint decides over each write of a daemon below a directory: it may
// go on, fail with an error of the caller's choice, or be the last thing that the
// daemon ever asked for.
//
// A write point is a system call of the daemon, not of its children, that changes
// what lies below the directory, or forces it to disk: writes by descriptor, files
// and directories that are made, linked, renamed, cut and removed, modes, owners,
// times and attributes, fsync. They are counted in the order in which the kernel
// reports them. What a call already under way in another thread does is not undone,
// as in a real crash.
//
// The kernel stops each such call before anything happens and asks
// (SECCOMP_RET_USER_NOTIF). The filter is set by a process that then becomes the
// daemon: a program that uses this package calls [Become] first thing, and starts
// itself in the daemon's place, with [Watcher.Env].
//
//	w, err := writepoint.Watch()
//	d, err := lab.StartDaemon(ctx, lab.DaemonOptions{Program: self, Env: w.Env(buildkitd), ...})
//	w.Decide(d.Root, d.Pid, func(p writepoint.Point) writepoint.Verdict { ... })
//
// Needs root and Linux 5.19.
package writepoint
