package fuse

import gofuse "github.com/hanwen/go-fuse/v2/fuse"

// Indices above every inode of a TOC name the hidden state directory of a layer
// and the file in it.
const (
	stateDirIndex  = 0xffff_fffe
	stateFileIndex = 0xffff_fffd
	maxInodes      = 0xffff_fff0 // a TOC has fewer

	maxLayer = 0xffff_fffe // its last node id is below go-fuse's reserved ^0
)

// nodeID names inode index of a layer to the kernel. Layer numbers start at 1,
// so no node id is that of the mount's root.
func nodeID(layer, index uint32) uint64 { return uint64(layer)<<32 | uint64(index) }

// splitNodeID is the inverse of nodeID. The mount's root is in layer 0.
func splitNodeID(id uint64) (layer, index uint32) { return uint32(id >> 32), uint32(id) }

// node finds the directory of a node id; nil when the layer was removed, or when
// the id is none of ours.
func (m *mount) node(id uint64) (*Dir, uint32) {
	layer, index := splitNodeID(id)
	return m.dir(layer), index
}

// treeNode is node for requests about a layer's tree, which an image's data have none of.
func (m *mount) treeNode(id uint64) (*Dir, uint32) {
	d, index := m.node(id)
	if d != nil && d.image != nil {
		return nil, 0
	}
	return d, index
}

func isRoot(id uint64) bool { return id == gofuse.FUSE_ROOT_ID }
