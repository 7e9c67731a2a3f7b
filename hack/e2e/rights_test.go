package e2e

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// login is a client's credentials for all registries.
type login struct {
	auth.UnimplementedAuthServer
	password string
}

func (l login) Register(s *grpc.Server) { auth.RegisterAuthServer(s, l) }

func (l login) Credentials(context.Context, *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	return &auth.CredentialsResponse{Username: "user", Secret: l.password}, nil
}

// privateRegistry serves an image to those who have the password "secret".
func privateRegistry(t *testing.T, img *lab.Image) (r *blobtest.Registry, ref string, manifest digest.Digest) {
	t.Helper()
	r = blobtest.New(t)
	for _, d := range append([]ocispecs.Descriptor{img.Config}, img.Layers...) {
		data, err := os.ReadFile(img.Blob(d.Digest))
		require.NoError(t, err)
		r.AddBlobAs(d.Digest, data)
	}
	data, err := os.ReadFile(img.Blob(img.Manifest.Digest))
	require.NoError(t, err)
	manifest = r.AddManifest("private/base", "1", img.Manifest.MediaType, data)
	r.RequireToken("user", "secret", time.Hour)
	return r, r.Reference("private/base:1"), manifest
}

// Whoever may not read a private base gets an error and not a byte, also where the
// daemon has the base and the step's result from somebody else's build.
func TestPrivateBaseStaysPrivate(t *testing.T) {
	privileged(t)
	ctx := testContext(t)
	r, ref, manifest := privateRegistry(t, image(t, lab.EStargz))
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Host()}})
	text := "FROM " + ref + "\nRUN python3 -c 'import json' && head -c 100 /etc/passwd\n"
	as := func(password string, o lab.BuildOptions) (*lab.BuildResult, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if password != "" {
			o.Attach = []bksession.Attachable{login{password: password}}
		}
		return lab.Build(ctx, d.Addr, o)
	}
	_, err := as("secret", lab.BuildOptions{Dockerfile: text})
	require.NoError(t, err)
	require.NotZero(t, r.Bytes())

	// By digest there is no tag to ask for, and the image is here already.
	pinned, err := llb.Image(r.Reference("private/base@" + manifest.String())).
		Run(llb.Args([]string{"/bin/sh", "-c", "cat /etc/passwd /etc/shadow; python3 -c 'import decimal'"})).Root().Marshal(ctx)
	require.NoError(t, err)
	_, err = as("secret", lab.BuildOptions{Definition: pinned})
	require.NoError(t, err)

	for _, who := range []struct{ name, password string }{{"a wrong password", "guess"}, {"nobody", ""}} {
		for _, what := range []struct {
			name string
			opts lab.BuildOptions
		}{
			{"a cached step", lab.BuildOptions{Dockerfile: text}},
			{"a new step", lab.BuildOptions{Dockerfile: text + "RUN cat /usr/bin/python3 > /dev/null\n"}},
			{"a cached step by digest", lab.BuildOptions{Definition: pinned}},
			{"files of the base", lab.BuildOptions{Dockerfile: text + "FROM scratch\nCOPY --from=0 /etc/passwd /\n"}},
		} {
			t.Run(who.name+", "+what.name, func(t *testing.T) {
				r.Reset()
				out := t.TempDir()
				what.opts.OutputDir = out
				_, err := as(who.password, what.opts)
				require.Error(t, err)
				require.NotErrorIs(t, err, context.DeadlineExceeded)
				require.NotContains(t, err.Error(), "DeadlineExceeded")
				require.Zero(t, r.Bytes(), "bytes of blobs that the registry sent")
				left, rerr := os.ReadDir(out)
				require.NoError(t, rerr)
				require.Empty(t, left, "files that the client got")
			})
		}
	}

	// Others' errors cost those who may nothing.
	r.Reset()
	res, err := as("secret", lab.BuildOptions{Dockerfile: text, Exports: []client.ExportEntry{}})
	require.NoError(t, err)
	require.NotZero(t, res.Cached)
}
