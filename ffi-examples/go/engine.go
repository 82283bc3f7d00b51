package inflight

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrSlowReader ends a request whose reader fell behind by more than its channel holds: a request
// that is not read must not hold blocks that others wait for.
var ErrSlowReader = errors.New("inflight: the reader of the stream is too slow")

// ErrShutdown refuses requests that come after [Engine.Shutdown].
var ErrShutdown = errors.New("inflight: shutting down")

// Model runs steps.
type Model interface {
	// Run computes a step and returns a token for each row that samples, in their order. The
	// engine reads it before the next call, so that the slice may be used again.
	//
	// The step's arrays are valid until Run returns. ctx ends when the engine is closed; an error
	// ends the requests of the step, and no others.
	Run(ctx context.Context, step *Step) ([]Token, error)
}

// EngineConfig is what an engine is made for.
type EngineConfig struct {
	// Scheduler is the scheduler's. Its steps are run one after the other, and its events taken, by
	// the engine: MaxStepsInFlight, Overlap and NoEvents must be zero.
	Scheduler Config
	// Buffer is how many tokens a reader may fall behind: 1024 by default.
	Buffer int
}

// Engine runs requests from any goroutine on a [Model], in one goroutine of its own.
type Engine struct {
	model     Model
	buffer    int
	start     time.Time
	submitter *Submitter
	// steps lets no other call between the loop's call and its use of the view that came of it.
	steps     sync.Mutex
	scheduler *Scheduler

	wake   chan struct{}
	done   chan struct{}
	ctx    context.Context
	abort  context.CancelFunc
	events []Event

	mu       sync.Mutex
	streams  map[uint64]*Stream
	lastID   uint64
	draining bool
	failed   error
	last     Stats
}

// NewEngine starts an engine, to be closed.
func NewEngine(config EngineConfig, model Model) (*Engine, error) {
	c := config.Scheduler
	if c.MaxStepsInFlight > 1 || c.Overlap || c.NoEvents || config.Buffer < 0 {
		return nil, &Error{
			Op:      "engine",
			Status:  StatusInvalidArgument,
			Message: "an engine runs one step at a time, takes the events, and has a buffer",
		}
	}
	scheduler, err := NewScheduler(c)
	if err != nil {
		return nil, err
	}
	submitter, err := scheduler.Submitter()
	if err != nil {
		_ = scheduler.Close()
		return nil, err
	}
	e := &Engine{
		model:     model,
		buffer:    config.Buffer,
		start:     time.Now(),
		submitter: submitter,
		scheduler: scheduler,
		wake:      make(chan struct{}, 1),
		done:      make(chan struct{}),
		events:    make([]Event, 64),
		streams:   make(map[uint64]*Stream),
	}
	if e.buffer == 0 {
		e.buffer = 1024
	}
	e.ctx, e.abort = context.WithCancel(context.Background())
	if err := scheduler.SetWake(e.nudge); err != nil {
		_ = submitter.Close()
		_ = scheduler.Close()
		return nil, err
	}
	go e.run()
	return e, nil
}

// Generate submits a request, whose ID the engine chooses, and returns the stream of its output.
// The request ends when ctx does.
//
// It does not wait: where too many wait already, the error is of class [Capacity]. After Shutdown
// it is [ErrShutdown], after Close [ErrClosed].
func (e *Engine) Generate(ctx context.Context, request Request) (*Stream, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// No more can come than it asks for.
	room := min(uint64(e.buffer), uint64(request.MaxTokens))
	stream := &Stream{
		tokens:    make(chan Token, room),
		done:      make(chan struct{}),
		unhook:    func() bool { return true },
		stopToken: NoToken,
	}
	if err := e.register(stream); err != nil {
		return nil, err
	}
	request.ID = stream.id
	stream.cancel = func() {
		// It fails where the engine is closed, and the stream has ended.
		_ = e.submitter.Cancel(stream.id)
	}
	stream.finish = func(keep uint32) { _ = e.submitter.Finish(stream.id, keep) }
	err := e.submitter.Submit(&request)
	if err != nil {
		e.forget(stream.id)
		e.nudge()
		if errors.Is(err, ErrClosed) {
			err = e.reason()
		}
		return nil, err
	}
	e.hook(ctx, stream)
	return stream, nil
}

// hook ends a request with its context.
func (e *Engine) hook(ctx context.Context, stream *Stream) {
	unhook := context.AfterFunc(ctx, func() { stream.stop(context.Cause(ctx)) })
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, runs := e.streams[stream.id]; runs {
		stream.unhook = unhook
	} else {
		// It has ended meanwhile.
		unhook()
	}
}

// register gives a stream its id.
func (e *Engine) register(stream *Stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.failed != nil:
		return e.failed
	case e.draining:
		return ErrShutdown
	}
	e.lastID++
	stream.id = e.lastID
	e.streams[stream.id] = stream
	return nil
}

// forget takes a stream out, which its caller ends.
func (e *Engine) forget(id uint64) *Stream {
	e.mu.Lock()
	defer e.mu.Unlock()
	stream := e.streams[id]
	delete(e.streams, id)
	return stream
}

func (e *Engine) find(id uint64) *Stream {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.streams[id]
}

// reason is why the engine runs no more; nil where it does.
func (e *Engine) reason() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.failed
}

// nudge has the loop look for work.
func (e *Engine) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Shutdown refuses new requests and waits until those that there are have ended, or ctx has: the
// rest end with [ErrClosed] then, and the error is ctx's cause. The engine is closed afterwards.
func (e *Engine) Shutdown(ctx context.Context) error {
	e.mu.Lock()
	e.draining = true
	e.mu.Unlock()
	e.nudge()
	select {
	case <-e.done:
		return e.outcome()
	case <-ctx.Done():
		_ = e.Close()
		return context.Cause(ctx)
	}
}

// Close ends every request with [ErrClosed] and waits for the loop's end: for [Model.Run] to
// return, whose context is over. It returns what the engine failed with, if it did.
func (e *Engine) Close() error {
	e.abort()
	e.nudge()
	<-e.done
	return e.outcome()
}

// outcome is what a loop that is over failed with.
func (e *Engine) outcome() error {
	if err := e.reason(); !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

// Draining says whether new requests are refused.
func (e *Engine) Draining() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.draining || e.failed != nil
}

// Stats returns the scheduler's counters and state; after the engine's end, those at its end.
func (e *Engine) Stats() Stats {
	e.steps.Lock()
	defer e.steps.Unlock()
	stats, err := e.scheduler.Stats()
	if err != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.last
	}
	return stats
}

// run is the loop.
func (e *Engine) run() {
	err := e.loop()
	e.steps.Lock()
	last, _ := e.scheduler.Stats()
	e.mu.Lock()
	e.last = last
	e.failed = err
	left := e.streams
	e.streams = map[uint64]*Stream{}
	e.mu.Unlock()
	_ = e.submitter.Close()
	_ = e.scheduler.Close()
	e.steps.Unlock()
	for _, stream := range left {
		stream.end(FinishNone, NoToken, err)
	}
	e.abort()
	close(e.done)
}

// loop runs steps until the engine is closed, or is shut down and has no request left.
func (e *Engine) loop() error {
	for e.ctx.Err() == nil {
		step, err := e.schedule()
		if err != nil {
			// With all blocks its own, nothing that a later step would mend.
			return err
		}
		if step.NumRows() > 0 {
			if err := e.execute(step); err != nil {
				return err
			}
			continue
		}
		if err := step.Abandon(); err != nil {
			return err
		}
		if e.drained() {
			break
		}
		select {
		case <-e.wake:
		case <-e.ctx.Done():
		}
	}
	return ErrClosed
}

func (e *Engine) drained() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.draining && len(e.streams) == 0
}

// schedule makes a step and tells the streams what happened to them before it.
func (e *Engine) schedule() (*Step, error) {
	e.steps.Lock()
	defer e.steps.Unlock()
	step, err := e.scheduler.Schedule(time.Since(e.start))
	if err != nil {
		return nil, err
	}
	for {
		n, err := e.scheduler.Events(e.events)
		if err != nil {
			return nil, err
		}
		for i := range e.events[:n] {
			e.happened(&e.events[i])
		}
		if n < len(e.events) {
			return step, nil
		}
	}
}

// happened ends the stream of a request that did not end by itself.
func (e *Engine) happened(event *Event) {
	switch event.Kind {
	case EventCancelled:
		if stream := e.forget(event.RequestID); stream != nil {
			stream.result = event.Result
			stream.end(FinishNone, NoToken, stream.stopped())
		}
	case EventRefused:
		if stream := e.forget(event.RequestID); stream != nil {
			err := &Error{Op: "submit", Status: event.Status}
			stream.end(FinishNone, NoToken, err)
		}
	case EventFinished:
		// Others came with their last token.
		if stream := e.forget(event.RequestID); stream != nil {
			stream.result = event.Result
			if stream.lost {
				stream.end(FinishNone, NoToken, ErrSlowReader)
			} else {
				stream.end(event.Finish, event.StopToken, nil)
			}
		}
	case EventPreempted:
		// It goes on later.
	}
}

// execute runs a step and hands out its tokens.
func (e *Engine) execute(step *Step) error {
	tokens, err := e.model.Run(e.ctx, step)
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	if err != nil {
		return e.fail(step, err)
	}
	e.steps.Lock()
	defer e.steps.Unlock()
	outputs, err := step.Commit(tokens)
	if errors.Is(err, StatusOutputMismatch) {
		return e.fail(step, err)
	}
	if err != nil {
		return err
	}
	for i := 0; i < outputs.Len(); i++ {
		output := outputs.At(i)
		stream := e.find(output.RequestID)
		if stream == nil {
			continue
		}
		if !stream.deliver(outputs.Tokens(i)) {
			stream.stop(ErrSlowReader)
		}
		if result, ended := outputs.Result(i); ended {
			stream.result = result
			e.finished(stream, &output)
		}
	}
	return nil
}

// finished ends the stream of a request that ended by itself.
func (e *Engine) finished(stream *Stream, output *Output) {
	e.forget(stream.id)
	if stream.lost {
		stream.end(FinishNone, NoToken, ErrSlowReader)
	} else {
		stream.end(output.Finish, output.StopToken, nil)
	}
}

// fail gives a step up and ends its requests.
func (e *Engine) fail(step *Step, cause error) error {
	rows := append([]Row(nil), step.Rows()...)
	if err := step.Abandon(); err != nil {
		return err
	}
	cause = fmt.Errorf("inflight: running step %d: %w", step.ID(), cause)
	for i := range rows {
		id := rows[i].RequestID
		if err := e.scheduler.Cancel(id); err != nil {
			return err
		}
		if stream := e.forget(id); stream != nil {
			stream.end(FinishNone, NoToken, cause)
		}
	}
	return nil
}
