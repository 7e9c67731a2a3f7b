package estargz

import (
	"errors"
	"fmt"
	"io"
)

// jsonReader is a pull parser of JSON (RFC 8259) for documents that do not fit
// in memory: encoding/json needs a heap object per value, and a tenth of the
// speed. It accepts what encoding/json accepts, but for names of members, which
// must match exactly; of strings it keeps bytes that are not UTF-8 as they are.
type jsonReader struct {
	r        io.Reader
	buf      []byte
	pos, end int   // unread bytes of buf
	base     int64 // bytes of the document before buf
	depth    int
	str      []byte // the last string or number, if it did not lie in buf as it is
}

const (
	jsonWindow    = 64 << 10
	jsonMaxDepth  = 64        // of nested values, all that the parser's recursion can cost
	jsonMaxString = 256 << 10 // xattr values of 64 KiB are 88 KiB in base64; paths may be escaped
	jsonMaxNumber = 64
)

func newJSONReader(r io.Reader) *jsonReader {
	return &jsonReader{r: r, buf: make([]byte, jsonWindow)}
}

func (j *jsonReader) errorf(format string, args ...any) error {
	return fmt.Errorf("JSON at byte %d: %w", j.base+int64(j.pos), fmt.Errorf(format, args...))
}

// fill reads more of the document; all of buf has been consumed.
func (j *jsonReader) fill() error {
	j.base += int64(j.end)
	j.pos, j.end = 0, 0
	for range 100 {
		n, err := j.r.Read(j.buf)
		if n > 0 {
			j.end = n
			return nil
		}
		if err == io.EOF {
			return j.errorf("%w", io.ErrUnexpectedEOF)
		}
		if err != nil {
			return j.errorf("%w", err)
		}
	}
	return j.errorf("%w", io.ErrNoProgress)
}

func (j *jsonReader) readByte() (byte, error) {
	if j.pos == j.end {
		if err := j.fill(); err != nil {
			return 0, err
		}
	}
	c := j.buf[j.pos]
	j.pos++
	return c, nil
}

// next returns the first byte of the next token without consuming it.
func (j *jsonReader) next() (byte, error) {
	if j.pos < j.end && j.buf[j.pos] > ' ' {
		return j.buf[j.pos], nil
	}
	return j.nextAfterSpace()
}

func (j *jsonReader) nextAfterSpace() (byte, error) {
	for {
		for j.pos < j.end {
			switch c := j.buf[j.pos]; c {
			case ' ', '\t', '\n', '\r':
				j.pos++
			default:
				return c, nil
			}
		}
		if err := j.fill(); err != nil {
			return 0, err
		}
	}
}

func (j *jsonReader) expect(want byte) error {
	c, err := j.next()
	if err != nil {
		return err
	}
	if c != want {
		return j.errorf("%q where %q should be", c, want)
	}
	j.pos++
	return nil
}

// literal consumes true, false or null.
func (j *jsonReader) literal(want string) error {
	for i := range len(want) {
		c, err := j.readByte()
		if err != nil {
			return err
		}
		if c != want[i] {
			return j.errorf("%q in %s", c, want)
		}
	}
	return nil
}

// null consumes null if it is next.
func (j *jsonReader) null() (bool, error) {
	c, err := j.next()
	if err != nil || c != 'n' {
		return false, err
	}
	return true, j.literal("null")
}

// done checks that nothing follows the document.
func (j *jsonReader) done() error {
	c, err := j.next()
	if err == nil {
		return j.errorf("%q behind the end", c)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

func (j *jsonReader) enter() error {
	if j.depth++; j.depth > jsonMaxDepth {
		return j.errorf("nested deeper than %d", jsonMaxDepth)
	}
	return nil
}

// object reads an object, or null as an empty one. member must consume the value
// of each key; key is valid until more is read.
func (j *jsonReader) object(member func(key []byte) error) error {
	return j.list('{', '}', func() error {
		key, err := j.string()
		if err != nil {
			return err
		}
		if j.pos < j.end && j.buf[j.pos] == ':' {
			j.pos++
			return member(key)
		}
		j.str = append(j.str[:0], key...) // the window may be filled anew
		if err := j.expect(':'); err != nil {
			return err
		}
		return member(j.str)
	})
}

// array reads an array, or null as an empty one. element must consume each value.
func (j *jsonReader) array(element func() error) error {
	return j.list('[', ']', element)
}

func (j *jsonReader) list(begin, end byte, item func() error) error {
	if null, err := j.null(); null || err != nil {
		return err
	}
	if err := j.expect(begin); err != nil {
		return err
	}
	if err := j.enter(); err != nil {
		return err
	}
	defer func() { j.depth-- }()
	c, err := j.next()
	if err != nil {
		return err
	}
	if c == end {
		j.pos++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		c, err := j.next()
		if err != nil {
			return err
		}
		j.pos++
		switch c {
		case end:
			return nil
		case ',':
		default:
			return j.errorf("%q where ',' or %q should be", c, end)
		}
	}
}
