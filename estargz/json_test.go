package estargz

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

// readAny turns a document into what encoding/json would make of it, with
// numbers as they are written.
func readAny(j *jsonReader) (any, error) {
	c, err := j.next()
	if err != nil {
		return nil, err
	}
	switch c {
	case '{':
		out := map[string]any{}
		return out, j.object(func(key []byte) error {
			k := string(key)
			v, err := readAny(j)
			out[k] = v
			return err
		})
	case '[':
		out := []any{}
		return out, j.array(func() error {
			v, err := readAny(j)
			out = append(out, v)
			return err
		})
	case '"':
		s, err := j.string()
		return string(s), err
	case 't':
		return true, j.literal("true")
	case 'f':
		return false, j.literal("false")
	case 'n':
		return nil, j.literal("null")
	}
	n, err := j.number()
	return json.Number(n), err
}

func readDocument(r io.Reader) (any, error) {
	j := newJSONReader(r)
	v, err := readAny(j)
	if err == nil {
		err = j.done()
	}
	return v, err
}

// FuzzJSON compares our parser with encoding/json: the same documents are
// accepted, with the same meaning, however the bytes arrive.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{}`, `[]`, ` [ 1 , 2 ] `, `{"a":{"b":[null,true,false,-1.5e+10]}}`, `"\u00e9\ud83d\ude80\ud83d x\ude80\ud83d\ud83d\ude80"`,
		`"\"\\\/\b\f\n\r\t"`, `01`, `-`, `1.`, `1e`, `[1,]`, `{"a"}`, `{"a":1,}`, `nul`, `"` + "\x01" + `"`, `"\x"`, `"\u12g4"`, `[] []`, `"é"`, `""`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if !utf8.Valid(doc) {
			t.Skip("encoding/json replaces what is not UTF-8, we keep it")
		}
		got, err := readDocument(bytes.NewReader(doc))
		if err != nil && tooMuch(doc) {
			t.Skip()
		}
		dec := json.NewDecoder(bytes.NewReader(doc))
		dec.UseNumber()
		var want any
		wantErr := dec.Decode(&want)
		if wantErr == nil {
			if _, err := dec.Token(); err != io.EOF {
				wantErr = io.ErrUnexpectedEOF
			}
		}
		if (err == nil) != (wantErr == nil) {
			// A number at the very end of a document: ours always end in '}'.
			if wantErr == nil && bytes.HasSuffix(bytes.TrimSpace(doc), []byte("}")) {
				t.Fatalf("%q: error %v, encoding/json says %v", doc, err, wantErr)
			}
			if wantErr != nil {
				t.Fatalf("%q: accepted as %v, encoding/json says %v", doc, got, wantErr)
			}
			return
		}
		if err != nil {
			return
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if !bytes.Equal(a, b) {
			t.Fatalf("%q: read as %s, encoding/json says %s", doc, a, b)
		}
		slow, err := readDocument(iotest.OneByteReader(bytes.NewReader(doc)))
		if c, _ := json.Marshal(slow); err != nil || !bytes.Equal(a, c) {
			t.Fatalf("%q: byte by byte read as %s, %v", doc, c, err)
		}
	})
}

// tooMuch says whether a document may be refused for its size alone.
func tooMuch(doc []byte) bool {
	depth, deepest := 0, 0
	for _, c := range doc {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		}
		deepest = max(deepest, depth)
	}
	return deepest > jsonMaxDepth || len(doc) > jsonMaxNumber
}

func TestJSONWindows(t *testing.T) {
	// Strings, escapes and numbers that lie across the parser's window.
	for pad := jsonWindow - 20; pad < jsonWindow+2; pad++ {
		doc := `{"` + strings.Repeat("p", pad) + `":["\ud83d\ude80\\","\ud83dx",12345,-7]}`
		got, err := readDocument(strings.NewReader(doc))
		if err != nil {
			t.Fatalf("pad %d: %v", pad, err)
		}
		a, _ := json.Marshal(got.(map[string]any)[strings.Repeat("p", pad)])
		if want := "[\"🚀\\\\\",\"\ufffdx\",12345,-7]"; string(a) != want {
			t.Fatalf("pad %d: %s", pad, a)
		}
	}
}

func TestJSONBounds(t *testing.T) {
	for name, doc := range map[string]string{
		"nesting": strings.Repeat("[", 1<<20),
		"string":  `["` + strings.Repeat("x", jsonMaxString+1) + `"]`,
		"number":  `[` + strings.Repeat("1", 1000) + `]`,
	} {
		if _, err := readDocument(strings.NewReader(doc)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
