package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/lazykit/lazykit/hack/lab/link"
)

// variant is a daemon in a mode.
type variant struct {
	id          string
	ours        bool
	snapshotter string
	profile     bool // has profiles of the same build from another daemon
	warm        bool // the base is extracted and in the page cache
}

func (v variant) name() string { return v.id }

var variants = []variant{
	{id: "ours", ours: true, snapshotter: "stargz"},
	{id: "ours-overlayfs", ours: true, snapshotter: "overlayfs"},
	{id: "stock-stargz", snapshotter: "stargz"},
	{id: "stock-overlayfs", snapshotter: "overlayfs"},
}

// coldVariants are those of cold: also one that knows what will be read, and the
// baseline that waits for nothing.
var coldVariants = append(variants[:len(variants):len(variants)],
	variant{id: "ours-profile", ours: true, snapshotter: "stargz", profile: true},
	variant{id: "warm-overlayfs", snapshotter: "overlayfs", warm: true},
)

// network is a link between daemon and registry.
type network struct {
	id    string
	text  string
	shape link.Shape
}

func (n network) name() string { return n.id }

var networks = []network{
	{id: "shaped", text: "30 ms round trip, 100 MB/s in all, 40 MB/s a connection",
		shape: link.Shape{RTT: 30 * time.Millisecond, Total: 100e6, PerConn: 40e6}},
	{id: "far", text: "80 ms round trip, 100 MB/s in all, 40 MB/s a connection",
		shape: link.Shape{RTT: 80 * time.Millisecond, Total: 100e6, PerConn: 40e6}},
	{id: "loopback", text: "no limits"},
}

// chooseNetworks finds networks by their names. rtt, unless it is zero, is put in the
// place of what those with a round trip time have.
func chooseNetworks(list string, rtt time.Duration) ([]network, error) {
	all, err := choose("network", networks, list)
	for i := range all {
		if rtt > 0 && all[i].shape.RTT > 0 {
			all[i].shape.RTT = rtt
			_, rest, _ := strings.Cut(all[i].text, ",")
			all[i].text = fmt.Sprintf("%d ms round trip,%s", rtt.Milliseconds(), rest)
		}
	}
	return all, err
}

// workload is a build: run is the shell script of its RUN on the base, with
// files copied to the working directory before, and the result is what it wrote
// to /out/result.
type workload struct {
	id    string
	run   string
	files map[string]string
	want  string
}

func (w workload) name() string { return w.id }

// dockerfile is the workload's, on an image.
func (w workload) dockerfile(ref string) string {
	return "FROM " + ref + " AS work\nWORKDIR /src\nCOPY . .\n" +
		"RUN mkdir /out && { " + w.run + "; } > /out/result\n" +
		"FROM scratch\nCOPY --from=work /out/ /\n"
}

var workloads = []workload{
	{
		id:    "python",
		run:   "python3 main.py",
		files: map[string]string{"main.py": "import numpy\nprint(int(numpy.arange(1000).reshape(10, 100).sum()))\n"},
		want:  "499500\n",
	},
	{
		id:  "g++",
		run: "g++ -O2 -o /tmp/main main.cpp && /tmp/main",
		files: map[string]string{"main.cpp": `#include <algorithm>
#include <iostream>
#include <map>
#include <string>
#include <vector>
int main() {
  std::map<std::string, int> m;
  std::vector<int> v{3, 1, 2};
  std::sort(v.begin(), v.end());
  for (int i : v) m[std::to_string(i)] = i * i;
  for (auto& [k, x] : m) std::cout << k << "=" << x << "\n";
}
`},
		want: "1=1\n2=4\n3=9\n",
	},
	{
		id:  "go",
		run: "GOCACHE=/tmp/cache go build -o /tmp/main . && /tmp/main",
		files: map[string]string{
			"go.mod": "module example.com/main\n\ngo 1.18\n",
			"main.go": `package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
)

func main() {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello", r.URL.Path) }))
	defer s.Close()
	r, err := http.Get(s.URL + "/there")
	if err != nil {
		panic(err)
	}
	b, _ := io.ReadAll(r.Body)
	fmt.Print(string(b))
}
`},
		want: "hello /there\n",
	},
	{
		id:   "node",
		run:  `node -e 'console.log(JSON.stringify({sum: [1, 2, 3].reduce((a, b) => a + b)}))'`,
		want: "{\"sum\":6}\n",
	},
}
