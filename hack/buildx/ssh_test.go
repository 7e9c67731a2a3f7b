package buildx

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh/agent"
)

// listKeys speaks the agent's protocol: one request for the identities (type
// 11), and prints the comment of the first in the answer (type 12).
const listKeys = `
import os, socket, struct

def take(data):
    n, = struct.unpack(">I", data[:4])
    return data[4:4+n], data[4+n:]

s = socket.socket(socket.AF_UNIX)
s.connect(os.environ["SSH_AUTH_SOCK"])
s.sendall(struct.pack(">IB", 1, 11))
f = s.makefile("rb")
size, = struct.unpack(">I", f.read(4))
answer = f.read(size)
kind, count = struct.unpack(">BI", answer[:5])
key, rest = take(answer[5:])
comment, rest = take(rest)
print(kind, count, comment.decode())
`

// testSSH checks that a step reaches the client's agent, and only if it asks.
func testSSH(t *testing.T, c *client) {
	dir := contextDir(t, map[string]string{
		"keys.py": listKeys,
		"Dockerfile": "FROM " + c.fixture.baseRef() + " AS build\nCOPY keys.py /\n" +
			"RUN --mount=type=ssh python3 /keys.py >/keys\n" +
			"RUN echo \"${SSH_AUTH_SOCK:-none}\" >/without\n" +
			"FROM scratch\nCOPY --from=build /keys /without /\n",
	})
	out := t.TempDir()
	c.build(t, dir, "--ssh", "default="+startAgent(t, "key of the test"), "--output", "type=local,dest="+out)
	wantText(t, "keys", readFile(t, out, "keys"), "12 1 key of the test\n")
	wantText(t, "socket of a step that asks for none", readFile(t, out, "without"), "none\n")
}

// startAgent serves one new key and returns the socket's path.
func startAgent(t *testing.T, comment string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	keyring := agent.NewKeyring()
	must(t, keyring.Add(agent.AddedKey{PrivateKey: &key, Comment: comment}))
	dir, err := os.MkdirTemp("/tmp", "lkssh") // a short path
	must(t, err)
	sock := filepath.Join(dir, "agent")
	listener, err := net.Listen("unix", sock)
	must(t, err)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			conns.Go(func() {
				defer conn.Close()
				_ = agent.ServeAgent(keyring, conn) // ends with the client's end of file
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		conns.Wait()
		os.RemoveAll(dir)
	})
	return sock
}
