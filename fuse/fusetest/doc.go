// Package fusetest helps to test what package fuse serves: layers in memory, and
// comparisons of a mounted tree with the tar that it was made of.
package fusetest
