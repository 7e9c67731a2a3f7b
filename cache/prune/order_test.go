package prune

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

func TestOrder(t *testing.T) {
	for _, tc := range []struct {
		name  string
		first []Record // in the order that is wanted
	}{
		{
			name:  "the one used longer ago",
			first: View{rec("c", ago(3*day)), rec("b", ago(2*day)), rec("a", ago(day))},
		}, {
			name:  "the one used less often",
			first: View{rec("c", times(1)), rec("b", times(5)), rec("a", times(6))},
		}, {
			name:  "the one never used",
			first: View{rec("c", neverUsed, created(day)), rec("b", ago(2*day)), rec("a", ago(day))},
		}, {
			name:  "several never used: the older record",
			first: View{rec("d", neverUsed, created(9*day)), rec("c", neverUsed, created(8*day)), rec("b")},
		}, {
			name: "ranks count, not spans: a second is as good as a year",
			// last use: 2, 3, 4 of 4; count: 2, 2, 3 of 3
			first: View{rec("b", ago(day), times(1)), rec("c", ago(day-time.Second), times(1)), rec("a", ago(time.Hour), times(1000))},
		}, {
			name: "often used but long ago, against seldom but lately: the older use decides",
			// 2/3+3/3 against 3/3+2/3
			first: View{rec("b", ago(2*day), times(9)), rec("a", ago(day), times(1))},
		}, {
			name: "the more numerous ranks are the finer ones",
			// last use: 2, 3, 4 of 4; count: 2, 3, 2 of 3. So 1.17, 1.67 and 1.75.
			first: View{rec("b", ago(3*day), times(1)), rec("a", ago(day), times(1)), rec("c", ago(2*day), times(2))},
		}, {
			name: "ranks begin at two",
			// last use: 2, 3 of 3; count: 2, 3, 4, 5 of 5. So 1.27, 1.4, 1.47 and 2;
			// were they 1, 2 of 2 and 1, 2, 3, 4 of 4, it would be 1, 1.25, 1.25 and 2.
			first: View{
				rec("a", ago(2*day), times(2)), rec("b", ago(day), times(1)),
				rec("c", ago(2*day), times(3)), rec("d", ago(day), times(4)),
			},
		}, {
			name:  "alike in all: by name",
			first: View{rec("a"), rec("b"), rec("c")},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var want []string
			for _, r := range tc.first {
				want = append(want, r.ID)
			}
			for range 10 {
				view := View(slices.Clone(tc.first))
				rand.Shuffle(len(view), func(i, j int) { view[i], view[j] = view[j], view[i] })
				p, err := Parse(client.PruneInfo{})
				require.NoError(t, err)
				require.Equal(t, want, ids(p.Begin(nil, 0, nil).Next(view, now)))
			}
		})
	}
}
