package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc/status"
)

// Failures of one second that have a line of their own, and different reasons that the report keeps.
const (
	listed     = 20
	maxReasons = 100
)

// second counts the calls that were sent in one second. It is told once each of them has ended, so that what was told never
// changes; seconds come in order.
type second struct {
	Time     float64        `json:"time"`
	OK       int            `json:"ok"`
	Failed   int            `json:"failed"`
	P50      float64        `json:"p50_ms"`
	P99      float64        `json:"p99_ms"`
	Max      float64        `json:"max_ms"`
	Late     float64        `json:"late_ms"`
	ByPod    map[string]int `json:"by_pod"`
	Unlisted int            `json:"unlisted"`

	underWay int
	took     []float64
}

type failure struct {
	Time    float64 `json:"time"`
	Failure string  `json:"failure"`
	Took    float64 `json:"took_ms"`
}

// report is the last line.
type report struct {
	OK      int            `json:"ok"`
	Failed  int            `json:"failed"`
	Max     float64        `json:"max_ms"`
	ByPod   map[string]int `json:"by_pod"`
	Reasons map[string]int `json:"reasons"`
	Seconds int            `json:"seconds"`
}

type done struct {
	second int
	sent   time.Time
	took   time.Duration
	pod    string
	err    error
}

// load calls at a rate, answers or not, until its time is over or ctx ends, and waits for the answers.
func (c client) load(ctx context.Context, rate, seconds int) bool {
	begun := time.Now()
	ended := make(chan done, 1024)
	r := report{ByPod: map[string]int{}, Reasons: map[string]int{}}
	open := []*second{} // the first one has the number r.Seconds
	at := func(number int) *second {
		for len(open) <= number-r.Seconds {
			open = append(open, &second{ByPod: map[string]int{}})
		}
		return open[number-r.Seconds]
	}
	// What a late timer sends after the end belongs to the last second.
	now := func() int {
		number := int(time.Since(begun) / time.Second)
		if seconds > 0 {
			number = min(number, seconds-1)
		}
		return number
	}
	sent, underWay, sending := 0, 0, true
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		due := begun.Add(time.Duration(float64(sent) / float64(rate) * float64(time.Second)))
		if seconds > 0 && !due.Before(begun.Add(time.Duration(seconds)*time.Second)) {
			sending = false
		}
		closed := now()
		if !sending {
			closed++
		}
		for r.Seconds < closed && at(r.Seconds).underWay == 0 {
			open[0].tell(begun.Add(time.Duration(r.Seconds) * time.Second))
			open = open[1:]
			r.Seconds++
		}
		if !sending && underWay == 0 {
			say(r)
			return r.Failed == 0
		}
		var next <-chan time.Time
		var stop <-chan struct{}
		if sending {
			next, stop = time.After(time.Until(due)), ctx.Done()
		}
		select {
		case <-next:
			number, start := now(), time.Now()
			sent++
			underWay++
			at(number).underWay++
			at(number).Late = max(at(number).Late, millis(start.Sub(due)))
			go func() {
				// The load's end lets calls under way finish.
				reply, err := c.sayHello(context.Background(), 0, c.timeout)
				ended <- done{number, start, time.Since(start), reply.GetPod(), err}
			}()
		case d := <-ended:
			underWay--
			at(d.second).count(d, &r)
		case <-tick.C:
		case <-stop:
			sending, seconds = false, now()+1
		}
	}
}

func (s *second) count(d done, r *report) {
	s.underWay--
	if d.err == nil {
		s.OK++
		s.ByPod[d.pod]++
		s.took = append(s.took, millis(d.took))
		r.OK++
		r.ByPod[d.pod]++
		r.Max = max(r.Max, millis(d.took))
		return
	}
	s.Failed++
	r.Failed++
	reason := fmt.Sprintf("%s: %s", status.Code(d.err), status.Convert(d.err).Message())
	if _, known := r.Reasons[reason]; known || len(r.Reasons) < maxReasons {
		r.Reasons[reason]++
	} else {
		r.Reasons["others"]++
	}
	if s.Failed > listed {
		s.Unlisted++
		return
	}
	say(failure{unixSeconds(d.sent), reason, millis(d.took)})
}

func (s *second) tell(begun time.Time) {
	s.Time = unixSeconds(begun)
	slices.Sort(s.took)
	if n := len(s.took); n > 0 {
		s.P50, s.P99, s.Max = s.took[(n-1)/2], s.took[(n-1)*99/100], s.took[n-1]
	}
	say(s)
}

func unixSeconds(t time.Time) float64 { return math.Round(float64(t.UnixMicro())/100) / 10_000 }

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
