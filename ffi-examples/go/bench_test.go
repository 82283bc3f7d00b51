package inflight_test

import (
	"fmt"
	"testing"
	"time"

	"inflight.dev/inflight"
	"inflight.dev/inflight/internal/cloop"
)

// A step: schedule and commit, every request computing one token. Requests start over, outside of
// what is timed, after as many steps as the blocks have room for.
const (
	benchPrompt = 512
	benchSteps  = 2048
)

func benchBlocks(running int) int { return running*(benchPrompt+benchSteps+64)/16 + 1 }

func BenchmarkStep(b *testing.B) {
	for _, running := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("Go/%d", running), func(b *testing.B) {
			b.ReportAllocs()
			for left := b.N; left > 0; left -= benchSteps {
				b.StopTimer()
				s := decoding(b, running)
				tokens := make([]inflight.Token, running)
				b.StartTimer()
				for i := 0; i < min(left, benchSteps); i++ {
					step, err := s.Schedule(0)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := step.Commit(tokens); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				_ = s.Close()
				b.StartTimer()
			}
		})
		b.Run(fmt.Sprintf("C/%d", running), func(b *testing.B) {
			var spent time.Duration
			for left := b.N; left > 0; left -= benchSteps {
				took, err := cloop.Run(benchBlocks(running), running, benchPrompt,
					min(left, benchSteps))
				if err != nil {
					b.Fatal(err)
				}
				spent += took
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "ns/op")
		})
	}
}

// decoding is a scheduler whose requests have computed their prompts.
func decoding(b *testing.B, running int) *inflight.Scheduler {
	b.Helper()
	s := scheduler(b, inflight.Config{
		NumBlocks:     benchBlocks(running),
		MaxNumSeqs:    running,
		NoPrefixCache: true,
	})
	prompt := make([]inflight.Token, benchPrompt)
	for id := 0; id < running; id++ {
		r := inflight.Request{ID: uint64(id), Prompt: prompt, MaxTokens: ^uint32(0)}
		if err := s.Submit(&r); err != nil {
			b.Fatal(err)
		}
	}
	tokens := make([]inflight.Token, running)
	for {
		step := schedule(b, s)
		decodes := step.NumRows() == running && step.NumTokens() == running
		mustCommit(b, step, tokens[:step.NumSampling()])
		if decodes {
			return s
		}
	}
}

// A request handed over and taken back.
func BenchmarkSubmit(b *testing.B) {
	s := scheduler(b, inflight.Config{NumBlocks: 1024})
	r := inflight.Request{ID: 1, Prompt: make([]inflight.Token, 256), MaxTokens: 128}
	b.ReportAllocs()
	for i := 0; i < b.N; i++ {
		if err := s.Submit(&r); err != nil {
			b.Fatal(err)
		}
		if err := s.Cancel(1); err != nil {
			b.Fatal(err)
		}
	}
}
