package cache

import (
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
)

// BuildKit's options for new records (WithDescription, CachePolicyRetain, ...)
// are functions of an unexported type: func(*cacheMetadata) error. That type is a
// struct around one *metadata.StorageItem, which is public, and it implements
// BuildKit's RefMetadata. This file makes values of it, by reflection. checkBridge
// says at start if a new BuildKit has changed the shape.

// metadataType is BuildKit's cacheMetadata.
var metadataType = func() reflect.Type {
	t := reflect.TypeOf(bkcache.CachePolicyRetain)
	if t.NumIn() != 1 || t.In(0).Kind() != reflect.Pointer {
		return nil
	}
	return t.In(0).Elem()
}()

// imageRefOption is the type of BuildKit's WithImageRef: the one option that is
// applied to records that exist, too.
var imageRefOption = reflect.TypeOf(bkcache.WithImageRef(""))

// errNotFound is the value that BuildKit's IsNotFound looks for.
var errNotFound = func() error {
	var c captor
	bkcache.IsNotFound(&c)
	return c.target
}()

// captor is an error that remembers what it was compared with.
type captor struct{ target error }

func (c *captor) Error() string { return "captor" }

// Is implements the interface that errors.Is looks for.
func (c *captor) Is(target error) bool {
	c.target = target
	return false
}

// checkBridge fails when BuildKit's types are not what this file was written for.
func checkBridge() error {
	item := reflect.TypeOf((*metadata.StorageItem)(nil))
	option := reflect.TypeOf(bkcache.WithDescription(""))
	switch {
	case metadataType == nil, metadataType.Kind() != reflect.Struct:
	case metadataType.NumField() != 1, metadataType.Field(0).Type != item:
	case option.Kind() != reflect.Func, option.NumIn() != 1, option.In(0) != reflect.PointerTo(metadataType):
	case imageRefOption.Kind() != reflect.Func, imageRefOption.Name() == "", imageRefOption.In(0) != option.In(0):
	case errNotFound == nil:
	default:
		return nil
	}
	return errors.New("cache: BuildKit's record options have changed their shape: bridge.go has to follow")
}

// newMetadata is BuildKit's view of an item.
func newMetadata(si *metadata.StorageItem) bkcache.RefMetadata {
	v := reflect.New(metadataType)
	field := v.Elem().Field(0)
	// The field is unexported, so reflection must be talked into setting it.
	reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem().Set(reflect.ValueOf(si))
	return v.Interface().(bkcache.RefMetadata)
}

// applyOptions applies the options that describe a new record. They queue their
// values, or write them at once.
func applyOptions(md bkcache.RefMetadata, opts []bkcache.RefOption) error {
	for _, o := range opts {
		if t := reflect.TypeOf(o); t != nil && t.Kind() == reflect.Func && t != imageRefOption {
			if err := applyOption(md, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// applyImageRefs applies the options that name the image a record came from.
func applyImageRefs(md bkcache.RefMetadata, opts []bkcache.RefOption) error {
	for _, o := range opts {
		if reflect.TypeOf(o) == imageRefOption {
			if err := applyOption(md, o); err != nil {
				return err
			}
		}
	}
	return nil
}

func applyOption(md bkcache.RefMetadata, o bkcache.RefOption) error {
	f := reflect.ValueOf(o)
	if f.Type().NumIn() != 1 || f.Type().In(0) != reflect.PointerTo(metadataType) || f.Type().NumOut() != 1 {
		return fmt.Errorf("cache: unknown option %T", o)
	}
	err, _ := f.Call([]reflect.Value{reflect.ValueOf(md)})[0].Interface().(error)
	return err
}
