package inflight_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"inflight.dev/inflight"
	"inflight.dev/inflight/toy"
)

func scheduler(t testing.TB, config inflight.Config) *inflight.Scheduler {
	t.Helper()
	s, err := inflight.NewScheduler(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func submitter(t testing.TB, s *inflight.Scheduler) *inflight.Submitter {
	t.Helper()
	to, err := s.Submitter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = to.Close() })
	return to
}

func schedule(t testing.TB, s *inflight.Scheduler) *inflight.Step {
	t.Helper()
	step, err := s.Schedule(0)
	if err != nil {
		t.Fatal(err)
	}
	return step
}

func mustCommit(t testing.TB, step *inflight.Step, tokens []inflight.Token) inflight.Outputs {
	t.Helper()
	outputs, err := step.Commit(tokens)
	if err != nil {
		t.Fatal(err)
	}
	return outputs
}

func request(id uint64, prompt string, maxTokens uint32) *inflight.Request {
	return &inflight.Request{ID: id, Prompt: toy.Encode(prompt), MaxTokens: maxTokens}
}

func TestRequestsRunToTheirEnd(t *testing.T) {
	config := inflight.Config{NumBlocks: 64, MaxNumBatchedTokens: 32}
	s, model := scheduler(t, config), toy.New(config)
	_ = submitter(t, s) // From here on there are events.
	prompts := map[uint64]string{1: "once upon a time", 2: "a", 3: "a long one that takes two steps"}
	for id, prompt := range prompts {
		if err := s.Submit(request(id, prompt, 40)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[uint64]string{}
	for len(prompts) > 0 {
		step := schedule(t, s)
		tokens, err := model.Run(context.Background(), step)
		if err != nil {
			t.Fatal(err)
		}
		outputs := mustCommit(t, step, tokens)
		for i := 0; i < outputs.Len(); i++ {
			output := outputs.At(i)
			got[output.RequestID] += toy.Decode(outputs.Tokens(i))
			if output.Finish == inflight.FinishNone {
				continue
			}
			if !slices.Contains(outputs.Released(), output.RequestID) {
				t.Errorf("request %d has finished and is not released", output.RequestID)
			}
			want := toy.Continue(prompts[output.RequestID], 40)
			if got[output.RequestID] != want || output.Finish != inflight.FinishLength {
				t.Errorf("%q, %v: not %q", got[output.RequestID], output.Finish, want)
			}
			delete(prompts, output.RequestID)
		}
		if err := s.Verify(); err != nil {
			t.Fatal(err)
		}
	}
	stats, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if stats.Finished != 3 || stats.OutputTokens != 120 || stats.NumFreeBlocks != 63 {
		t.Errorf("%+v", stats)
	}
	events := make([]inflight.Event, 2)
	for _, want := range []int{2, 1, 0} {
		n, err := s.Events(events)
		if err != nil || n != want {
			t.Errorf("%d events, %v: not %d", n, err, want)
		}
		for _, event := range events[:n] {
			if event.Kind != inflight.EventFinished || event.Finish != inflight.FinishLength {
				t.Errorf("%+v", event)
			}
		}
	}
}

func TestWhatEndsARequest(t *testing.T) {
	s := scheduler(t, inflight.Config{NumBlocks: 64})
	eos := inflight.Token(0)
	first := request(1, "p", 9)
	first.EOS = &eos
	second := request(2, "p", 9)
	second.StopTokens = []inflight.Token{7, 8}
	third := request(3, "p", 9)
	third.RepetitionCount, third.RepetitionMaxPattern = 2, 4
	third.Salt, third.Adapter = []byte("salt"), []byte("adapter")
	third.Contents = []inflight.Content{{ID: []byte("digest"), Start: 0, Len: 1}}
	third.SkipPrefixCache, third.Client = true, 42
	for _, r := range []*inflight.Request{first, second, third} {
		if err := s.Submit(r); err != nil {
			t.Fatal(err)
		}
	}
	mustCommit(t, schedule(t, s), []inflight.Token{5, 5, 5})
	snapshot, err := s.Request(3)
	want := inflight.Snapshot{Client: 42, Running: true, NumPrompt: 1, NumOutput: 1, NumComputed: 1}
	if err != nil || snapshot != want {
		t.Errorf("%+v, %v", snapshot, err)
	}
	outputs := mustCommit(t, schedule(t, s), []inflight.Token{0, 8, 5})
	for i, want := range []inflight.Output{
		{RequestID: 1, Finish: inflight.FinishEOS, StopToken: inflight.NoToken},
		{RequestID: 2, Finish: inflight.FinishStopToken, StopToken: 8},
		{RequestID: 3, Finish: inflight.FinishRepetition, StopToken: inflight.NoToken},
	} {
		got := outputs.At(i)
		if got.RequestID != want.RequestID || got.Finish != want.Finish ||
			got.StopToken != want.StopToken {
			t.Errorf("%+v is not %+v", got, want)
		}
	}
}

func TestDraftsAreCommittedRagged(t *testing.T) {
	s := scheduler(t, inflight.Config{NumBlocks: 64})
	if err := s.Submit(request(1, "prompt", 9)); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, schedule(t, s), []inflight.Token{5})
	if err := s.SetDraft(1, []inflight.Token{6, 7}); err != nil {
		t.Fatal(err)
	}
	step := schedule(t, s)
	if row := step.Rows()[0]; row.NumDraft != 2 || len(step.LogitsIndices()) != 3 {
		t.Errorf("%+v", row)
	}
	if _, err := step.CommitRagged([]inflight.Token{6, 9}, nil); err == nil {
		t.Error("offsets are needed")
	}
	outputs, err := step.CommitRagged([]inflight.Token{6, 9}, []uint32{0, 2})
	if err != nil || !slices.Equal(outputs.Tokens(0), []inflight.Token{6, 9}) {
		t.Errorf("%v, %v", outputs, err)
	}
}

func TestARequestSaysAtItsEndWhatItHasComeTo(t *testing.T) {
	s := scheduler(t, inflight.Config{NumBlocks: 64, BlockSize: 4})
	hand := submitter(t, s)
	ask := func(id uint64, maxTokens uint32) {
		if err := s.Submit(request(id, "what is cached", maxTokens)); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Duration(0)
	run := func(tokens []inflight.Token, indptr ...uint32) inflight.Outputs {
		now += time.Second
		step, err := s.Schedule(now)
		if err != nil {
			t.Fatal(err)
		}
		commit := func() (inflight.Outputs, error) { return step.Commit(tokens) }
		if indptr != nil {
			commit = func() (inflight.Outputs, error) { return step.CommitRagged(tokens, indptr) }
		}
		outputs, err := commit()
		if err != nil {
			t.Fatal(err)
		}
		return outputs
	}
	ask(1, 1)
	run([]inflight.Token{1})
	ask(2, 4)
	run([]inflight.Token{1})
	if err := s.SetDraft(2, []inflight.Token{5, 6}); err != nil {
		t.Fatal(err)
	}
	outputs := run([]inflight.Token{5, 8}, 0, 2)
	if _, ended := outputs.Result(0); ended {
		t.Error("it goes on")
	}
	so, err := s.Request(2)
	if err != nil || so.NumCached != 12 || so.NumAccepted != 1 || so.FirstTokenAt != 2*time.Second {
		t.Errorf("%+v, %v", so, err)
	}
	outputs = run([]inflight.Token{9})
	want := inflight.RequestResult{
		FirstScheduledAt: 2 * time.Second, FirstTokenAt: 2 * time.Second,
		NumPrompt: 14, NumOutput: 4, NumCached: 12, NumDrafts: 2, NumAccepted: 1,
	}
	if result, ended := outputs.Result(0); !ended || result != want {
		t.Errorf("%+v", result)
	}
	ask(3, 50)
	ask(4, 50)
	run([]inflight.Token{1, 1})
	run([]inflight.Token{1, 1})
	if result, err := s.Finish(3, 1); err != nil || result.NumOutput != 1 {
		t.Errorf("%+v, %v", result, err)
	}
	if _, err := s.Finish(3, 1); !errors.Is(err, inflight.StatusUnknownRequest) {
		t.Errorf("%v", err)
	}
	if err := hand.Finish(4, 9); err != nil {
		t.Fatal(err)
	}
	run(nil)
	events := make([]inflight.Event, 9)
	n, err := s.Events(events)
	if err != nil || n != 3 {
		t.Fatalf("%d, %v", n, err)
	}
	if events[1].Result != want || events[2].Finish != inflight.FinishStopped ||
		events[2].Result.NumOutput != 2 {
		t.Errorf("%+v", events[:n])
	}
}

func TestTheFirstThatIsHandedOverWakes(t *testing.T) {
	s := scheduler(t, inflight.Config{NumBlocks: 64})
	hand := submitter(t, s)
	calls := make(chan int, 9)
	wake := func(number int) func() { return func() { calls <- number } }
	for _, f := range []func(){wake(0), wake(1)} {
		if err := s.SetWake(f); err != nil {
			t.Fatal(err)
		}
	}
	for id := uint64(1); id < 4; id++ {
		if err := hand.Submit(request(id, "p", 1)); err != nil {
			t.Fatal(err)
		}
	}
	if len(calls) != 1 || <-calls != 1 {
		t.Error("not one call of the second")
	}
	runtime.GC()
	if err := s.SetWake(wake(2)); err != nil || len(calls) != 1 || <-calls != 2 {
		t.Errorf("%v: not told at once", err)
	}
	_ = schedule(t, s)
	if err := s.SetWake(nil); err != nil {
		t.Error(err)
	}
	if err := hand.Cancel(1); err != nil || len(calls) != 0 {
		t.Errorf("%v, %d calls", err, len(calls))
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.SetWake(wake(3)); err != inflight.ErrClosed {
		t.Error(err)
	}
}

func TestErrorsByStatus(t *testing.T) {
	s := scheduler(t, inflight.Config{NumBlocks: 8, MaxModelLen: 100, MaxWaiting: 2})
	submit := func(id uint64, prompt int, max uint32) func() error {
		r := inflight.Request{ID: id, Prompt: make([]inflight.Token, prompt), MaxTokens: max}
		return func() error { return s.Submit(&r) }
	}
	small := scheduler(t, inflight.Config{NumBlocks: 3, MaxModelLen: 100})
	step := schedule(t, s)
	cases := []struct {
		name   string
		call   func() error
		status inflight.Status
		class  inflight.Class
		field  string
		// Which request it is about; 0 for none.
		request uint64
	}{
		{"no prompt", submit(1, 0, 1), inflight.StatusInvalidArgument, inflight.Argument, "prompt", 1},
		{"no tokens", submit(1, 1, 0), inflight.StatusInvalidArgument, inflight.Argument,
			"max_tokens", 1},
		{"long", submit(1, 100, 1), inflight.StatusPromptTooLong, inflight.Argument, "", 1},
		{"never", func() error { return small.Submit(request(1, "prompt", 32)) },
			inflight.StatusNeverFits, inflight.Argument, "", 1},
		{"fits", submit(1, 9, 1), 0, 0, "", 0},
		{"again", submit(1, 9, 1), inflight.StatusDuplicateRequest, inflight.Argument, "", 1},
		{"fits too", submit(2, 9, 1), 0, 0, "", 0},
		{"full", submit(3, 9, 1), inflight.StatusQueueFull, inflight.Capacity, "", 3},
		{"unknown", func() error { return s.Cancel(9) }, inflight.StatusUnknownRequest,
			inflight.Argument, "", 9},
		{"none such", func() error { _, err := s.Request(9); return err },
			inflight.StatusUnknownRequest, inflight.Argument, "", 9},
		{"steps", func() error { _, err := s.Schedule(0); return err },
			inflight.StatusTooManyStepsInFlight, inflight.Capacity, "", 0},
		{"mismatch", func() error { _, err := step.Commit([]inflight.Token{1}); return err },
			inflight.StatusOutputMismatch, inflight.Argument, "", 0},
		{"abandon", step.Abandon, 0, 0, "", 0},
		{"twice", step.Abandon, inflight.StatusUnknownStep, inflight.Argument, "", 0},
		{"late", func() error { _, err := step.Commit(nil); return err },
			inflight.StatusUnknownStep, inflight.Argument, "", 0},
		{"blocks", func() error { _, err := inflight.NewScheduler(inflight.Config{}); return err },
			inflight.StatusInvalidArgument, inflight.Argument, "num_blocks", 0},
		{"negative", func() error {
			_, err := inflight.NewScheduler(inflight.Config{NumBlocks: 9, BlockSize: -1})
			return err
		}, inflight.StatusInvalidArgument, inflight.Argument, "block_size", 0},
		{"policy", func() error {
			_, err := inflight.NewScheduler(inflight.Config{NumBlocks: 9, Policy: 99})
			return err
		}, inflight.StatusInvalidArgument, inflight.Argument, "policy", 0},
	}
	for _, c := range cases {
		err := c.call()
		if c.status == 0 {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		var detail *inflight.Error
		if !errors.Is(err, c.status) || !errors.Is(err, c.class) || !errors.As(err, &detail) {
			t.Errorf("%s: %v is not %v", c.name, err, c.status)
			continue
		}
		if detail.Field != c.field || detail.Op == "" || err.Error() == "" {
			t.Errorf("%s: %+v", c.name, detail)
		}
		if id, about := c.request, c.request != 0; detail.HasRequest != about || detail.RequestID != id {
			t.Errorf("%s: %+v is not of request %d", c.name, detail, id)
		}
		if errors.Is(err, inflight.StatusCorrupt) || errors.Is(err, inflight.Internal) {
			t.Errorf("%s: %v is everything", c.name, err)
		}
	}
	if got := inflight.StatusQueueFull.Error(); got != "inflight: the waiting queue is full: try again later" {
		t.Error(got)
	}
	if got := inflight.Status(12345).String(); got != "unknown status" {
		t.Error(got)
	}
}

func TestViewsEndWithTheirStep(t *testing.T) {
	s := scheduler(t, inflight.Config{NumBlocks: 64, MaxPaddedRows: 8})
	for id := uint64(1); id <= 3; id++ {
		if err := s.Submit(request(id, "prompt", 9)); err != nil {
			t.Fatal(err)
		}
	}
	step := schedule(t, s)
	lasting := step.Copy()
	for name, same := range map[string]bool{
		"rows":      slices.Equal(step.Rows(), lasting.Rows()) && len(step.Rows()) == 3,
		"tokens":    slices.Equal(step.Tokens(), lasting.Tokens()) && len(step.Tokens()) == 18,
		"positions": slices.Equal(step.Positions(), lasting.Positions()),
		"slots":     slices.Equal(step.SlotMapping(), lasting.SlotMapping()),
		"q indptr":  slices.Equal(step.QueryIndptr(), lasting.QueryIndptr()),
		"kv indptr": slices.Equal(step.KVIndptr(), lasting.KVIndptr()) && len(step.KVIndptr()) == 5,
		"indices":   slices.Equal(step.KVIndices(), lasting.KVIndices()),
		"last":      slices.Equal(step.KVLastPageLen(), []uint32{6, 6, 6, 0}),
		"logits":    slices.Equal(step.LogitsIndices(), []uint32{5, 11, 17}),
		"packed":    slices.Equal(step.Packed(), lasting.Packed()) && len(step.Packed()) > 100,
		"none": len(step.Pending())+len(step.BlockOps())+len(step.Preempted()) == 0 &&
			step.NumPaddedRows() == 4 && step.MaxQueryLen() == 6 && step.MaxKVLen() == 6,
	} {
		if !same {
			t.Errorf("%s: %+v", name, step)
		}
	}
	outputs := mustCommit(t, step, []inflight.Token{1, 2, 3})
	if step.Rows() != nil || step.Tokens() != nil || step.Packed() != nil || step.KVIndptr() != nil {
		t.Error("a step that is over has no arrays")
	}
	if step.Copy().Tokens() != nil {
		t.Error("nor have its copies")
	}
	if len(lasting.Tokens()) != 18 || lasting.Tokens()[0] != 'p' {
		t.Error("a copy lasts")
	}
	if _, err := lasting.Commit(nil); !errors.Is(err, inflight.StatusUnknownStep) {
		t.Errorf("a copy was committed: %v", err)
	}
	if outputs.Len() != 3 || len(outputs.Tokens(2)) != 1 {
		t.Errorf("%+v", outputs)
	}
	if _, err := s.Stats(); err != nil {
		t.Fatal(err)
	}
	if outputs.Len() != 0 || outputs.Released() != nil {
		t.Error("outputs end with the next call")
	}
	step = schedule(t, s)
	_ = s.Close()
	if step.Tokens() != nil {
		t.Error("a closed scheduler's steps are over")
	}
}

func TestUseAfterClose(t *testing.T) {
	s := scheduler(t, inflight.Config{NumBlocks: 64})
	to, orphan := submitter(t, s), submitter(t, s)
	step := schedule(t, s)
	_ = to.Close()
	_ = s.Close()
	for name, call := range map[string]func() error{
		"submit":    func() error { return s.Submit(request(1, "p", 1)) },
		"cancel":    func() error { return s.Cancel(1) },
		"draft":     func() error { return s.SetDraft(1, nil) },
		"schedule":  func() error { _, err := s.Schedule(0); return err },
		"commit":    func() error { _, err := step.Commit(nil); return err },
		"abandon":   step.Abandon,
		"events":    func() error { _, err := s.Events(nil); return err },
		"stats":     func() error { _, err := s.Stats(); return err },
		"request":   func() error { _, err := s.Request(1); return err },
		"verify":    s.Verify,
		"reset":     s.ResetPrefixCache,
		"submitter": func() error { _, err := s.Submitter(); return err },
		"submits":   func() error { return to.Submit(request(1, "p", 1)) },
		"cancels":   func() error { return to.Cancel(1) },
		"orphan":    func() error { return orphan.Submit(request(1, "p", 1)) },
		"orphan's":  func() error { return orphan.Cancel(1) },
	} {
		if err := call(); !errors.Is(err, inflight.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s.Close() != nil || to.Close() != nil || orphan.Close() != nil {
		t.Error("closing again is fine")
	}
}

// A late caller finds a closed handle, not freed memory.
func TestCloseWhileOthersCall(t *testing.T) {
	for round := 0; round < 50; round++ {
		s := scheduler(t, inflight.Config{NumBlocks: 64})
		to := submitter(t, s)
		var group sync.WaitGroup
		for g := uint64(0); g < 4; g++ {
			group.Add(1)
			go func(g uint64) {
				defer group.Done()
				for i := g * 1000; ; i++ {
					_, err := s.Stats()
					if to.Submit(request(i, "p", 1)) != nil && err != nil {
						return
					}
					_ = to.Cancel(i)
				}
			}(g)
		}
		time.Sleep(time.Duration(round) * 10 * time.Microsecond)
		_ = s.Close()
		_ = to.Close()
		group.Wait()
	}
}

// Many submit and cancel while one steps: each request ends exactly once.
func TestEveryRequestEndsOnce(t *testing.T) {
	const goroutines, each = 8, 400
	config := inflight.Config{NumBlocks: 40, MaxNumSeqs: 32, MaxWaiting: 64, BlockSize: 4}
	s := scheduler(t, config)
	to := submitter(t, s)
	var accepted, refused, handing atomic.Int64
	handing.Store(goroutines)
	for g := 0; g < goroutines; g++ {
		go func(g int) {
			defer handing.Add(-1)
			random := rand.New(rand.NewSource(int64(g)))
			for i := 0; i < each; i++ {
				// Every eighth id is another goroutine's too.
				id := uint64(g*each + i)
				if i%8 == 0 {
					id = uint64(goroutines*each + i)
				}
				r := inflight.Request{ID: id, Prompt: make([]inflight.Token, 1+random.Intn(20))}
				r.MaxTokens = uint32(1 + random.Intn(20))
				for {
					err := to.Submit(&r)
					if err == nil {
						accepted.Add(1)
						break
					}
					if !errors.Is(err, inflight.Capacity) {
						t.Errorf("submit: %v", err)
						return
					}
					refused.Add(1)
					runtime.Gosched()
				}
				if random.Intn(3) == 0 {
					if err := to.Cancel(uint64(random.Intn(goroutines * each))); err != nil {
						t.Errorf("cancel: %v", err)
					}
				}
			}
		}(g)
	}
	ended := map[inflight.EventKind]int64{}
	events := make([]inflight.Event, 16)
	tokens := make([]inflight.Token, config.MaxNumSeqs)
	for {
		last := handing.Load() == 0
		step, err := s.Schedule(0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := step.Commit(tokens[:step.NumSampling()]); err != nil {
			t.Fatal(err)
		}
		for n := len(events); n == len(events); {
			if n, err = s.Events(events); err != nil {
				t.Fatal(err)
			}
			for _, event := range events[:n] {
				ended[event.Kind]++
				if event.Kind == inflight.EventRefused &&
					event.Status != inflight.StatusDuplicateRequest &&
					event.Status != inflight.StatusQueueFull {
					t.Errorf("%+v", event)
				}
			}
		}
		if last && step.NumRunning()+step.NumWaiting() == 0 {
			break
		}
	}
	sum := ended[inflight.EventFinished] + ended[inflight.EventCancelled] +
		ended[inflight.EventRefused]
	if accepted.Load() != goroutines*each || sum != accepted.Load() {
		t.Errorf("%d handed over, %d ended: %v", accepted.Load(), sum, ended)
	}
	stats, err := s.Stats()
	if err != nil || stats.NumFreeBlocks != config.NumBlocks-1 {
		t.Errorf("%+v, %v", stats, err)
	}
	if err := s.Verify(); err != nil {
		t.Error(err)
	}
	t.Logf("%v; %d times the queue was full", ended, refused.Load())
}

func TestFinalizersAreANet(t *testing.T) {
	before := inflight.Handles()
	for i := 0; i < 20; i++ {
		s, err := inflight.NewScheduler(inflight.Config{NumBlocks: 64})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Submitter(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Schedule(0); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for inflight.Handles() > before {
		if time.Now().After(deadline) {
			t.Fatalf("%d handles are left", inflight.Handles()-before)
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
}

// What C is given may move before and after the call, and not during it.
func TestRequestsOfAllShapesUnderCollection(t *testing.T) {
	s := scheduler(t, inflight.Config{NumBlocks: 1 << 16})
	to := submitter(t, s)
	stop := make(chan struct{})
	var collector sync.WaitGroup
	collector.Add(1)
	go func() {
		defer collector.Done()
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	for id := uint64(1); id <= 300; id++ {
		r := request(id, fmt.Sprintf("prompt of %d", id), 2)
		for c := uint32(0); c < uint32(id%5); c++ {
			content := inflight.Content{ID: []byte(fmt.Sprint(id, c)), Start: c, Len: 1}
			r.Contents = append(r.Contents, content)
		}
		r.Salt = []byte(fmt.Sprint("salt", id%3))
		if err := to.Submit(r); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	collector.Wait()
	step := schedule(t, s)
	for r, row := range step.Rows() {
		from, to := step.QueryIndptr()[r], step.QueryIndptr()[r+1]
		want := fmt.Sprintf("prompt of %d", row.RequestID)
		if got := toy.Decode(step.Tokens()[from:to]); got != want {
			t.Errorf("%q is not %q", got, want)
		}
	}
}

func TestTheLibrarySaysWhatItIs(t *testing.T) {
	if inflight.Version() == "" || inflight.Build().Target == "" {
		t.Errorf("%q, %+v", inflight.Version(), inflight.Build())
	}
}
