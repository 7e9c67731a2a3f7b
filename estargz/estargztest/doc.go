// Package estargztest makes layers in every format that package estargz reads,
// and says what tree each means.
//
// Layers are made of tars (FromTar, Convert) or of entries in words (Build):
//
//	l := estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz},
//		estargztest.Dir("etc"),
//		estargztest.File("etc/hostname", []byte("box\n"), estargztest.Mode(0o600)),
//		estargztest.Whiteout("etc/motd"))
//	toc := l.Open(t)
//
// ModelOfTar is the oracle: the tree that a tar means, worked out with maps and
// strings, independently of estargz. TreeOf is what a TOC and its blob say.
// Torture and Quirks are layers that have everything.
//
// eStargz and legacy stargz come from stargz-snapshotter's and our own writer,
// zstd:chunked from stargz-snapshotter's and from one that writes as
// containers/storage does (Podman, Buildah, Skopeo).
package estargztest
