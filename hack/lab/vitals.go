package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Vitals are what a daemon holds at one moment.
type Vitals struct {
	RssAnon    int64 // bytes of anonymous memory
	FDs        int   // open file descriptors, but for Conns
	Conns      int   // TCP connections, which are kept for a while for the next request
	Goroutines int   // but for those that serve Conns
	Mounts     int   // below its root, and of what is there
	Disk       int64 // bytes below its root, but for the databases and Held
	Held       int64 // bytes of records that are in use and can't be pruned
}

func (v Vitals) String() string {
	return fmt.Sprintf("%.1f MB of memory, %d files, %d connections, %d goroutines, %d mounts, %.1f MB on disk, %.1f MB held",
		float64(v.RssAnon)/1e6, v.FDs, v.Conns, v.Goroutines, v.Mounts, float64(v.Disk)/1e6, float64(v.Held)/1e6)
}

// Vitals collects the garbage of a daemon that was started with Debug, and measures.
func (d *Daemon) Vitals(ctx context.Context) (v Vitals, err error) {
	for range 2 { // finalizers free what the next collection finds
		if _, err := d.debug(ctx, "/debug/gc"); err != nil {
			return v, err
		}
	}
	profile, err := d.debug(ctx, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return v, err
	}
	if _, err := fmt.Sscanf(profile, "goroutine profile: total %d", &v.Goroutines); err != nil {
		return v, fmt.Errorf("vitals of buildkitd: its goroutines: %w", err)
	}
	v.Goroutines -= connGoroutines(profile)
	if v.FDs, v.Conns, err = openFiles(d.Pid); err != nil {
		return v, fmt.Errorf("vitals of buildkitd: %w", err)
	}
	mounts, err := Mounts(d.Root)
	if err != nil {
		return v, fmt.Errorf("vitals of buildkitd: its mounts: %w", err)
	}
	v.Mounts, v.RssAnon = len(mounts), rssAnon(d.Pid)
	c, err := d.Client(ctx)
	if err != nil {
		return v, err
	}
	defer c.Close()
	records, err := c.DiskUsage(ctx)
	if err != nil {
		return v, fmt.Errorf("vitals of buildkitd: %w", err)
	}
	for _, r := range records {
		if r.InUse {
			v.Held += r.Size
		}
	}
	disk, err := DiskUsage(d.Root, func(rel string) bool { return strings.HasSuffix(rel, ".db") })
	v.Disk = max(disk-v.Held, 0)
	return v, err
}

// connGoroutines is how many goroutines of a profile serve TCP connections to registries.
func connGoroutines(profile string) (n int) {
	_, groups, _ := strings.Cut(profile, "\n") // behind the total
	for _, group := range strings.Split(groups, "\n\n") {
		if !strings.Contains(group, "net/http.(*persistConn).") && !strings.Contains(group, "worker.(*connections).keep") {
			continue
		}
		var k int
		if _, err := fmt.Sscanf(strings.TrimSpace(group), "%d @", &k); err == nil {
			n += k
		}
	}
	return n
}

// openFiles counts a process's TCP connections, and its other open files.
func openFiles(pid int) (files, conns int, err error) {
	tcp := map[string]bool{} // the sockets of its network namespace
	for _, name := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if err != nil && !os.IsNotExist(err) {
			return 0, 0, err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 9 && f[3] != tcpListen {
				tcp["socket:["+f[9]+"]"] = true
			}
		}
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	for _, fd := range fds {
		// One that is closed meanwhile is still one of those that were listed.
		if to, _ := os.Readlink(filepath.Join(dir, fd.Name())); tcp[to] {
			conns++
		}
	}
	return len(fds) - conns, conns, nil
}

// tcpListen is the state of a listening socket in /proc/net/tcp, see proc_net_tcp(5).
const tcpListen = "0A"

// Mounts are those below a daemon's root, and those elsewhere of what lies there.
func Mounts(root string) ([]*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	var on *mountinfo.Info // where root lies
	for _, m := range all {
		if mp := strings.TrimSuffix(m.Mountpoint, "/"); (root == mp || strings.HasPrefix(root, mp+"/")) && (on == nil || len(m.Mountpoint) >= len(on.Mountpoint)) {
			on = m
		}
	}
	if on == nil {
		return nil, fmt.Errorf("no mount holds %s", root)
	}
	within := path.Join(on.Root, strings.TrimPrefix(root, on.Mountpoint)) + "/"
	return slices.DeleteFunc(all, func(m *mountinfo.Info) bool {
		bound := m.Major == on.Major && m.Minor == on.Minor && strings.HasPrefix(m.Root, within)
		return !bound && !strings.HasPrefix(m.Mountpoint, root+"/") && !strings.Contains(m.VFSOptions, "="+root+"/")
	}), nil
}

// Profile is one of Go's profiles of a daemon that was started with Debug, as text:
// "goroutine", "heap", ...
func (d *Daemon) Profile(ctx context.Context, name string) (string, error) {
	return d.debug(ctx, "/debug/pprof/"+name+"?debug=1")
}

func (d *Daemon) debugSocket() string { return filepath.Join(d.dir, "debug") }

// debug asks the daemon's debug endpoint.
func (d *Daemon) debug(ctx context.Context, path string) (string, error) {
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.debugSocket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://buildkitd"+path, nil)
	if err != nil {
		return "", fmt.Errorf("ask buildkitd for %s: %w", path, err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask buildkitd for %s: %w", path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("ask buildkitd for %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ask buildkitd for %s: %s", path, resp.Status)
	}
	return string(body), nil
}
