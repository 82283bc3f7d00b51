package inflight

import (
	"context"
	"sync"
	"sync/atomic"
)

// Stream is the output of a request that an [Engine] runs.
type Stream struct {
	id     uint64
	tokens chan Token
	done   chan struct{}
	cancel func()
	finish func(keep uint32)
	unhook func() bool

	// The loop's: tokens were lost, and so no later ones are delivered.
	lost bool

	// Written by the engine's loop before done is closed.
	reached   Finish
	stopToken Token
	result    RequestResult
	err       error

	// Why it is to end, by the first that says so.
	reason atomic.Pointer[error]
	once   sync.Once
}

// ID returns the id that the engine chose for the request.
func (s *Stream) ID() uint64 { return s.id }

// Tokens returns the output, closed at its end. A reader who falls [EngineConfig.Buffer] tokens
// behind loses the request, whose error is then [ErrSlowReader].
func (s *Stream) Tokens() <-chan Token { return s.tokens }

// Done returns a channel that is closed when the request has ended and all its tokens are in
// Tokens.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Result waits for the end of the request, and says why it ended: by itself, or else with an error,
// which is the cause of its context where that ended it.
func (s *Stream) Result() (Finish, error) {
	<-s.done
	return s.reached, s.err
}

// Report waits for the end of the request and returns what it has come to: zeros, where it was refused
// or the engine ended.
func (s *Stream) Report() RequestResult {
	<-s.done
	return s.result
}

// StopToken waits for the end of the request and returns the stop token that ended it, or
// [NoToken].
func (s *Stream) StopToken() Token {
	<-s.done
	return s.stopToken
}

// Cancel asks for the end of the request, whose error is then context.Canceled. It does not wait.
func (s *Stream) Cancel() { s.stop(context.Canceled) }

// Finish asks for the end of the request after its first keepTokens tokens, as at a stop string that
// the reader has found: it ends with [FinishStopped], and tokens after them do not count. It does not
// wait.
func (s *Stream) Finish(keepTokens uint32) { s.finish(keepTokens) }

// Collect reads the output to its end.
func (s *Stream) Collect() ([]Token, error) {
	var all []Token
	for token := range s.tokens {
		all = append(all, token)
	}
	_, err := s.Result()
	return all, err
}

// stop asks the engine to end the request for a reason.
func (s *Stream) stop(reason error) {
	if s.reason.CompareAndSwap(nil, &reason) {
		s.cancel()
	}
}

// stopped returns why the request is to end; nil where it goes on.
func (s *Stream) stopped() error {
	if reason := s.reason.Load(); reason != nil {
		return *reason
	}
	return nil
}

// deliver hands tokens to the reader without waiting, and says whether there was room.
func (s *Stream) deliver(tokens []Token) bool {
	for i := 0; i < len(tokens) && !s.lost; i++ {
		select {
		case s.tokens <- tokens[i]:
		default:
			s.lost = true
		}
	}
	return !s.lost
}

// end closes the stream. Only the engine's loop calls it, since it delivers too.
func (s *Stream) end(finish Finish, stopToken Token, err error) {
	s.once.Do(func() {
		s.unhook()
		s.reached, s.stopToken, s.err = finish, stopToken, err
		close(s.tokens)
		close(s.done)
	})
}
