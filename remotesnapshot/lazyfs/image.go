package lazyfs

import "github.com/lazykit/lazykit/remotesnapshot/layer"

// siblings lists the open layers of the image that asked for e last: those that
// came by the same reference.
func (fs *FS) siblings(e *entry) (out []*layer.Layer) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, o := range fs.mu.entries {
		if l := o.content.layer.Load(); l != nil && o.reference == e.reference {
			out = append(out, l)
		}
	}
	return out
}
