package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadEvents(t *testing.T) {
	const log = `
{"Action":"run","Test":"TestUnit"}
{"Action":"pass","Test":"TestUnit"}
{"Action":"run","Test":"TestIntegration/TestA/worker=oci"}
{"Action":"output","Test":"TestIntegration/TestA/worker=oci","Output":"{\"Action\":\"fail\"}\n"}
not an event
{"Action":"pass","Test":"TestIntegration/TestA/worker=oci"}
{"Action":"run","Test":"TestIntegration/TestB/worker=oci"}
{"Action":"skip","Test":"TestIntegration/TestB/worker=oci"}
{"Action":"run","Test":"TestIntegration/TestC/worker=oci"}
{"Action":"fail","Test":"TestIntegration/TestC/worker=oci"}
{"Action":"run","Test":"TestIntegration/TestD/worker=oci"}
{"Action":"pause","Test":"TestIntegration/TestD/worker=oci"}
`
	got, err := readEvents(strings.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	want := results{
		"TestIntegration/TestA/worker=oci": passed,
		"TestIntegration/TestB/worker=oci": skipped,
		"TestIntegration/TestC/worker=oci": failed,
		"TestIntegration/TestD/worker=oci": lost,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWorse(t *testing.T) {
	stock := results{"a": passed, "b": passed, "b/sub": passed, "c": passed, "d": passed, "e": failed, "f": skipped}
	ours := results{"a": passed, "b": failed, "b/sub": failed, "c": skipped, "e": failed, "f": passed}
	for _, tt := range []struct {
		name string
		got  []string
		want []string
	}{
		{"a failure counts at its subtest, a skip and a missing test count", stock.worse(ours), []string{"b/sub", "c", "d"}},
		{"the other way", ours.worse(stock), []string{"f"}},
		{"nothing is worse than itself", stock.worse(stock), nil},
		{"by outcome", stock.only(skipped, ours, passed), []string{"f"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Join(tt.got, " ") != strings.Join(tt.want, " ") {
				t.Errorf("got %q, want %q", tt.got, tt.want)
			}
		})
	}
}

func TestSaveAndLoad(t *testing.T) {
	file := t.TempDir() + "/deep/results.json"
	if got, err := loadResults(file); got != nil || err != nil {
		t.Fatalf("no file: got %v, %v", got, err)
	}
	want := results{"a": passed, "b": lost}
	if err := want.save(file); err != nil {
		t.Fatal(err)
	}
	got, err := loadResults(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFilter(t *testing.T) {
	const name = "TestIntegration/TestCopyLink/worker=oci-snapshotter-stargz/frontend=builtin"
	for _, tt := range []struct {
		mode, run, name string
		want            bool
	}{
		{"stargz", "", name, true},
		{"stargz", "Copy", name, true},
		{"stargz", "^TestCopyLink$", name, true},
		{"stargz", "^TestCopy$|^TestAdd", name, false},
		{"overlayfs", "", name, false},
		{"stargz", "", "TestIntegration/TestCopyLink", false},
		{"stargz", "", "TestIntegration/TestCopyLink/worker=oci", false},
	} {
		f, err := newFilter(tt.mode, tt.run)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.matches(tt.name); got != tt.want {
			t.Errorf("mode %s, run %q, %s: got %v", tt.mode, tt.run, tt.name, got)
		}
	}
	if _, err := newFilter("stargz", "("); err == nil {
		t.Error("a broken expression is taken")
	}
}

func TestExactly(t *testing.T) {
	got := exactly("TestIntegration/Test.A/worker=oci")
	if want := `^TestIntegration$/^Test\.A$/^worker=oci$`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
