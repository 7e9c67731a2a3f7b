package estargz

import (
	"bytes"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// string reads a string. The result is valid until more is read.
func (j *jsonReader) string() ([]byte, error) {
	if err := j.expect('"'); err != nil {
		return nil, err
	}
	// Mostly all of it is in the window, and stands for itself.
	window := j.buf[j.pos:j.end]
	if n := plainPrefix(window); n < len(window) && window[n] == '"' {
		j.pos += n + 1
		return window[:n:n], nil
	}
	return j.longString()
}

// longString reads the rest of a string with escapes, or across windows.
func (j *jsonReader) longString() ([]byte, error) {
	j.str = j.str[:0]
	for {
		if j.pos == j.end {
			if err := j.fill(); err != nil {
				return nil, err
			}
		}
		window := j.buf[j.pos:j.end]
		n := plainPrefix(window)
		if len(j.str)+n > jsonMaxString {
			return nil, j.errorf("string of more than %d bytes", jsonMaxString)
		}
		j.str = append(j.str, window[:n]...)
		j.pos += n
		if n == len(window) {
			continue
		}
		j.pos++
		switch c := window[n]; c {
		case '"':
			return j.str, nil
		case '\\':
			if err := j.escape(); err != nil {
				return nil, err
			}
		default:
			return nil, j.errorf("control character %#x in a string", c)
		}
	}
}

// plainPrefix is how many bytes of b stand for themselves in a string.
func plainPrefix(b []byte) int {
	for i, c := range b {
		if special[c] {
			return i
		}
	}
	return len(b)
}

// special are the bytes that end a string, or mean something else in it.
var special = func() (t [256]bool) {
	for c := range 0x20 {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

func (j *jsonReader) escape() error {
	c, err := j.readByte()
	if err != nil {
		return err
	}
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		return j.escapedRune()
	default:
		return j.errorf("escape %q in a string", c)
	}
	j.str = append(j.str, c)
	return nil
}

// escapedRune reads the digits of \uXXXX, and of the second half of a surrogate
// pair; half a pair is U+FFFD.
func (j *jsonReader) escapedRune() error {
	r, err := j.hex4()
	if err != nil {
		return err
	}
	for utf16.IsSurrogate(r) {
		if more, err := j.lookingAt(`\u`); err != nil || !more {
			r = utf8.RuneError
			if err != nil {
				return err
			}
			break
		}
		second, err := j.hex4()
		if err != nil {
			return err
		}
		if whole := utf16.DecodeRune(r, second); whole != utf8.RuneError {
			r = whole
			break
		}
		j.str = utf8.AppendRune(j.str, utf8.RuneError)
		r = second
	}
	j.str = utf8.AppendRune(j.str, r)
	return nil
}

// lookingAt consumes s (two bytes) if it comes next.
func (j *jsonReader) lookingAt(s string) (bool, error) {
	if j.end-j.pos < len(s) {
		// Keep what is there and read behind it: only at the end of the window.
		n := copy(j.buf, j.buf[j.pos:j.end])
		j.base += int64(j.pos)
		j.pos, j.end = 0, n
		m, err := io.ReadAtLeast(j.r, j.buf[n:], len(s)-n)
		j.end += m
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return false, j.errorf("%w", err)
		}
	}
	if !bytes.HasPrefix(j.buf[j.pos:j.end], []byte(s)) {
		return false, nil
	}
	j.pos += len(s)
	return true, nil
}

func (j *jsonReader) hex4() (rune, error) {
	var r rune
	for range 4 {
		c, err := j.readByte()
		if err != nil {
			return 0, err
		}
		d, ok := hexDigit(c)
		if !ok {
			return 0, j.errorf("%q in an escape", c)
		}
		r = r<<4 | rune(d)
	}
	return r, nil
}

// stringOrNull is string, with null as the empty string.
func (j *jsonReader) stringOrNull() ([]byte, error) {
	if null, err := j.null(); null || err != nil {
		return nil, err
	}
	return j.string()
}

// integer reads a whole number that fits 64 bits; null is 0.
func (j *jsonReader) integer() (int64, error) {
	if null, err := j.null(); null || err != nil {
		return 0, err
	}
	if n, ok := j.shortNumber(); ok {
		return n, nil
	}
	tok, err := j.number()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(tok), 10, 64)
	if err != nil {
		return 0, j.errorf("%w", err)
	}
	return n, nil
}

// shortNumber consumes a whole number that lies in the window as at most 18 digits
// without a zero in front, whose value can't be too large.
func (j *jsonReader) shortNumber() (n int64, ok bool) {
	window := j.buf[j.pos:j.end]
	for i, c := range window {
		if c >= '0' && c <= '9' && i < 18 {
			n = 10*n + int64(c-'0')
			continue
		}
		if i == 0 || window[0] == '0' && i > 1 || isOfNumber(c) {
			return 0, false
		}
		j.pos += i
		return n, true
	}
	return 0, false
}

// isOfNumber says whether a byte may occur in a number.
func isOfNumber(c byte) bool {
	return c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'
}

// number reads the token of a number and checks its form.
func (j *jsonReader) number() ([]byte, error) {
	if _, err := j.next(); err != nil {
		return nil, err
	}
	j.str = j.str[:0]
	for {
		if j.pos == j.end {
			if err := j.fill(); err != nil {
				return nil, err // a number is never the end of our documents
			}
		}
		c := j.buf[j.pos]
		if !isOfNumber(c) {
			break
		}
		if len(j.str) == jsonMaxNumber {
			return nil, j.errorf("number of more than %d digits", jsonMaxNumber)
		}
		j.str = append(j.str, c)
		j.pos++
	}
	if !validNumber(j.str) {
		return nil, j.errorf("%.64q is not a number", j.str)
	}
	return j.str, nil
}

// validNumber checks RFC 8259's grammar of numbers.
func validNumber(b []byte) bool {
	digits := func() bool {
		n := 0
		for n < len(b) && b[n] >= '0' && b[n] <= '9' {
			n++
		}
		b = b[n:]
		return n > 0
	}
	b = bytes.TrimPrefix(b, []byte("-"))
	if len(b) > 1 && b[0] == '0' && b[1] >= '0' && b[1] <= '9' {
		return false
	}
	if !digits() {
		return false
	}
	if len(b) > 0 && b[0] == '.' {
		b = b[1:]
		if !digits() {
			return false
		}
	}
	if len(b) > 0 && (b[0] == 'e' || b[0] == 'E') {
		b = b[1:]
		if len(b) > 0 && (b[0] == '+' || b[0] == '-') {
			b = b[1:]
		}
		if !digits() {
			return false
		}
	}
	return len(b) == 0
}

// skip consumes any value.
func (j *jsonReader) skip() error {
	c, err := j.next()
	if err != nil {
		return err
	}
	switch c {
	case '{':
		return j.object(func([]byte) error { return j.skip() })
	case '[':
		return j.array(j.skip)
	case '"':
		_, err := j.string()
		return err
	case 't':
		return j.literal("true")
	case 'f':
		return j.literal("false")
	case 'n':
		return j.literal("null")
	}
	_, err = j.number()
	return err
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}
