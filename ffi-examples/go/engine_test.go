package inflight_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"inflight.dev/inflight"
	"inflight.dev/inflight/toy"
)

var engineConfig = inflight.EngineConfig{
	Scheduler: inflight.Config{NumBlocks: 64, MaxNumSeqs: 16, MaxNumBatchedTokens: 64},
}

func engine(t testing.TB, config inflight.EngineConfig, model inflight.Model) *inflight.Engine {
	t.Helper()
	e, err := inflight.NewEngine(config, model)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func prompt(text string, maxTokens uint32) inflight.Request {
	return inflight.Request{Prompt: toy.Encode(text), MaxTokens: maxTokens}
}

func generate(t testing.TB, e *inflight.Engine, r inflight.Request) *inflight.Stream {
	t.Helper()
	stream, err := e.Generate(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// idle waits until an engine holds nothing.
func idle(t testing.TB, e *inflight.Engine) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		stats := e.Stats()
		if stats.NumRunning+stats.NumWaiting == 0 &&
			stats.NumFreeBlocks == engineConfig.Scheduler.NumBlocks-1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not idle: %+v", stats)
		}
		time.Sleep(time.Millisecond)
	}
}

// slowly is a model whose steps wait for leave.
type slowly struct {
	*toy.Model
	leave chan struct{}
}

func (m *slowly) Run(ctx context.Context, step *inflight.Step) ([]inflight.Token, error) {
	select {
	case <-m.leave:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return m.Model.Run(ctx, step)
}

func TestStreamsAreRight(t *testing.T) {
	e := engine(t, engineConfig, toy.New(engineConfig.Scheduler))
	var group sync.WaitGroup
	for i := 0; i < 100; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			text := fmt.Sprintf("shared by all of them, or most; then number %d", i)
			stream, err := e.Generate(context.Background(), prompt(text, uint32(20+i)))
			if err != nil {
				t.Error(err)
				return
			}
			tokens, err := stream.Collect()
			if got := toy.Decode(tokens); err != nil || got != toy.Continue(text, 20+i) {
				t.Errorf("%q: %q, %v", text, got, err)
			}
			if finish, err := stream.Result(); finish != inflight.FinishLength || err != nil {
				t.Errorf("%v, %v", finish, err)
			}
		}(i)
	}
	group.Wait()
	idle(t, e)
	stats := e.Stats()
	if stats.Finished != 100 || stats.Preemptions == 0 || stats.PrefixHitTokens == 0 {
		t.Errorf("%+v", stats)
	}
}

func TestStopTokensAreReported(t *testing.T) {
	e := engine(t, engineConfig, toy.New(engineConfig.Scheduler))
	r := prompt("prompt", 64)
	text := toy.Continue("prompt", 64)
	r.StopTokens = []inflight.Token{inflight.Token(text[10])}
	stream := generate(t, e, r)
	tokens, err := stream.Collect()
	if err != nil || len(tokens) > 11 || stream.StopToken() != r.StopTokens[0] {
		t.Errorf("%q, %v, %d", toy.Decode(tokens), err, stream.StopToken())
	}
}

func TestContextsEndRequests(t *testing.T) {
	model := &slowly{toy.New(engineConfig.Scheduler), make(chan struct{})}
	e := engine(t, engineConfig, model)
	why := errors.New("the client has gone")
	ctx, cancel := context.WithCancelCause(context.Background())
	stream, err := e.Generate(ctx, prompt("prompt", 100))
	if err != nil {
		t.Fatal(err)
	}
	other := generate(t, e, prompt("other", 20))
	model.leave <- struct{}{}
	if token := <-stream.Tokens(); byte(token) != toy.Continue("prompt", 1)[0] {
		t.Errorf("token %d", token)
	}
	cancel(why)
	for ended := false; !ended; {
		select {
		case <-stream.Done():
			ended = true
		case model.leave <- struct{}{}:
			time.Sleep(time.Millisecond)
		}
	}
	if _, err := stream.Result(); err != why {
		t.Errorf("%v", err)
	}
	close(model.leave)
	if tokens, err := other.Collect(); err != nil || toy.Decode(tokens) != toy.Continue("other", 20) {
		t.Errorf("%v", err)
	}
	idle(t, e)
	if _, err := e.Generate(ctx, prompt("late", 1)); err != why {
		t.Errorf("%v", err)
	}
	late, timeout := context.WithTimeout(context.Background(), time.Millisecond)
	defer timeout()
	<-late.Done()
	if _, err := e.Generate(late, prompt("late", 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	cancelled := generate(t, e, prompt("prompt", 1000))
	cancelled.Cancel()
	if _, err := cancelled.Result(); err != context.Canceled {
		t.Errorf("%v", err)
	}
	cancelled.Cancel()
	idle(t, e)
}

func TestAReaderEndsItsRequestAtAStopString(t *testing.T) {
	model := toy.New(engineConfig.Scheduler)
	// A thousand tokens take a second, so that the request does not end before it is told to.
	model.Latency = time.Millisecond
	e := engine(t, engineConfig, model)
	whole := generate(t, e, prompt("prompt", 20))
	if _, err := whole.Collect(); err != nil {
		t.Fatal(err)
	}
	report := whole.Report()
	if report.NumOutput != 20 || report.NumPrompt != 6 || report.FirstScheduledAt < 0 ||
		report.FirstTokenAt < report.FirstScheduledAt {
		t.Errorf("%+v", report)
	}
	stopped := generate(t, e, prompt("prompt", 1000))
	for i := 0; i < 5; i++ {
		<-stopped.Tokens()
	}
	stopped.Finish(5)
	if finish, err := stopped.Result(); finish != inflight.FinishStopped || err != nil {
		t.Errorf("%v, %v", finish, err)
	}
	if report := stopped.Report(); report.NumOutput != 5 {
		t.Errorf("%+v", report)
	}
	stopped.Finish(5)
	idle(t, e)
	if stats := e.Stats(); stats.Cancelled != 0 || stats.Finished != 2 {
		t.Errorf("%+v", stats)
	}
}

func TestASlowReaderLosesItsRequest(t *testing.T) {
	config := engineConfig
	config.Buffer = 8
	e := engine(t, config, toy.New(config.Scheduler))
	slow := generate(t, e, prompt("slow", 500))
	brief := generate(t, e, prompt("brief", 8))
	if _, err := slow.Result(); err != inflight.ErrSlowReader {
		t.Errorf("%v", err)
	}
	// What it got has no gap.
	tokens, err := slow.Collect()
	if got := toy.Decode(tokens); err == nil || got != toy.Continue("slow", 8) {
		t.Errorf("%q, %v", got, err)
	}
	// A reader that never comes delays no other, where all of it fits.
	if _, err := brief.Result(); err != nil {
		t.Error(err)
	}
	idle(t, e)
	if stats := e.Stats(); stats.Cancelled != 1 || stats.Finished != 1 {
		t.Errorf("%+v", stats)
	}
}

func TestBackPressure(t *testing.T) {
	config := engineConfig
	config.Scheduler.MaxWaiting = 4
	model := &slowly{toy.New(config.Scheduler), make(chan struct{})}
	e := engine(t, config, model)
	var streams []*inflight.Stream
	for {
		stream, err := e.Generate(context.Background(), prompt("prompt", 2))
		if errors.Is(err, inflight.StatusQueueFull) && errors.Is(err, inflight.Capacity) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	if len(streams) < 4 || len(streams) > 24 {
		t.Errorf("%d requests were taken", len(streams))
	}
	close(model.leave)
	for _, stream := range streams {
		if _, err := stream.Result(); err != nil {
			t.Error(err)
		}
	}
	if _, err := e.Generate(context.Background(), prompt("", 1)); !errors.Is(err, inflight.Argument) {
		t.Errorf("%v", err)
	}
	idle(t, e)
}

// faulty fails where it meets a row of the prompt.
type faulty struct {
	*toy.Model
	short bool
}

var errFault = errors.New("a fault")

func (m *faulty) Run(ctx context.Context, step *inflight.Step) ([]inflight.Token, error) {
	tokens, err := m.Model.Run(ctx, step)
	for _, token := range step.Tokens() {
		if token == '!' && m.short {
			return nil, nil
		} else if token == '!' {
			return nil, errFault
		}
	}
	return tokens, err
}

func TestAModelsErrorEndsItsStepsRequests(t *testing.T) {
	for _, short := range []bool{false, true} {
		e := engine(t, engineConfig, &faulty{toy.New(engineConfig.Scheduler), short})
		_, err := generate(t, e, prompt("fault!", 5)).Result()
		if !short && !errors.Is(err, errFault) ||
			short && !errors.Is(err, inflight.StatusOutputMismatch) {
			t.Errorf("%v", err)
		}
		tokens, err := generate(t, e, prompt("right", 5)).Collect()
		if err != nil || toy.Decode(tokens) != toy.Continue("right", 5) {
			t.Errorf("%v", err)
		}
		idle(t, e)
	}
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	before := inflight.Handles()
	model := &slowly{toy.New(engineConfig.Scheduler), make(chan struct{})}
	e := engine(t, engineConfig, model)
	stream := generate(t, e, prompt("prompt", 30))
	down := make(chan error)
	go func() { down <- e.Shutdown(context.Background()) }()
	for !e.Draining() {
		runtime.Gosched()
	}
	if _, err := e.Generate(context.Background(), prompt("late", 1)); err != inflight.ErrShutdown {
		t.Errorf("%v", err)
	}
	close(model.leave)
	if err := <-down; err != nil {
		t.Error(err)
	}
	if tokens, err := stream.Collect(); err != nil || len(tokens) != 30 {
		t.Errorf("%d tokens, %v", len(tokens), err)
	}
	if _, err := e.Generate(context.Background(), prompt("late", 1)); err != inflight.ErrClosed {
		t.Errorf("%v", err)
	}
	if stats := e.Stats(); stats.Finished != 1 {
		t.Errorf("%+v", stats)
	}
	if inflight.Handles() != before || e.Close() != nil || e.Shutdown(context.Background()) != nil {
		t.Error("all is closed")
	}
}

func TestShutdownDoesNotWaitForever(t *testing.T) {
	model := &slowly{toy.New(engineConfig.Scheduler), make(chan struct{})}
	e := engine(t, engineConfig, model)
	stream := generate(t, e, prompt("prompt", 30))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if err := e.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := stream.Collect(); err != inflight.ErrClosed {
		t.Errorf("%v", err)
	}
	stream.Cancel()
}

// Everything at once: each stream ends once, with all of its text, a part of it, or none.
func TestTumult(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	config := engineConfig
	config.Scheduler.MaxWaiting, config.Buffer = 64, 64
	e := engine(t, config, toy.New(config.Scheduler))
	var finished, cancelled, slow, full atomic.Int64
	var group sync.WaitGroup
	for g := 0; g < 16; g++ {
		group.Add(1)
		go func(g int) {
			defer group.Done()
			random := rand.New(rand.NewSource(int64(g)))
			for i := 0; i < 40; i++ {
				ctx, cancel := context.WithCancel(context.Background())
				text, n := fmt.Sprintf("%d of %d", i, g), 1+random.Intn(100)
				stream, err := e.Generate(ctx, prompt(text, uint32(n)))
				if errors.Is(err, inflight.Capacity) {
					full.Add(1)
					cancel()
					time.Sleep(time.Millisecond)
					continue
				}
				if err != nil {
					t.Error(err)
					cancel()
					return
				}
				leave := -1
				if random.Intn(3) == 0 {
					leave = random.Intn(n)
				}
				var got []inflight.Token
				for token := range stream.Tokens() {
					if got = append(got, token); len(got) == leave {
						cancel()
					}
				}
				_, err = stream.Result()
				cancel()
				if want := toy.Continue(text, n); toy.Decode(got) != want[:len(got)] ||
					err == nil && len(got) != n {
					t.Errorf("%q: %q, %v", text, toy.Decode(got), err)
				}
				switch err {
				case nil:
					finished.Add(1)
				case context.Canceled:
					cancelled.Add(1)
				case inflight.ErrSlowReader:
					slow.Add(1)
				default:
					t.Error(err)
				}
			}
		}(g)
	}
	group.Wait()
	idle(t, e)
	if sum := finished.Load() + cancelled.Load() + slow.Load() + full.Load(); sum != 16*40 {
		t.Errorf("%d of %d ended", sum, 16*40)
	}
	t.Logf("%d finished, %d cancelled, %d too slow, %d refused", finished.Load(), cancelled.Load(),
		slow.Load(), full.Load())
	_ = e.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > goroutines; {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAnEngineNeedsItsEvents(t *testing.T) {
	config := engineConfig
	config.Scheduler.NoEvents = true
	if _, err := inflight.NewEngine(config, nil); !errors.Is(err, inflight.Argument) {
		t.Errorf("%v", err)
	}
}
