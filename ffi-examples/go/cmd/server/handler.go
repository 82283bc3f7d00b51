package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"inflight.dev/inflight"
	"inflight.dev/inflight/toy"
)

const (
	maxBody = 1 << 20
	// A client who takes nothing for so long is gone.
	writeTimeout = 10 * time.Second
)

// handler answers requests from an engine.
type handler struct {
	engine *inflight.Engine
	mux    *http.ServeMux

	completed, cancelled, refused, failed atomic.Int64
	open                                  atomic.Int64
}

func newHandler(engine *inflight.Engine) *handler {
	h := &handler{engine: engine, mux: http.NewServeMux()}
	h.mux.HandleFunc("/v1/completions", h.completions)
	h.mux.HandleFunc("/metrics", h.metrics)
	h.mux.HandleFunc("/health", h.health)
	return h
}

// ServeHTTP implements [http.Handler].
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// completionRequest is what a client asks for.
type completionRequest struct {
	Prompt    string `json:"prompt"`
	MaxTokens uint32 `json:"max_tokens"`
	Stream    bool   `json:"stream"`
	Stop      string `json:"stop"`
	Priority  int32  `json:"priority"`
	// CacheSalt keeps clients apart who must not learn from timings what others asked.
	CacheSalt string `json:"cache_salt"`
}

// completion is an answer, or with a stream a part of one.
type completion struct {
	ID      string   `json:"id"`
	Object  string   `json:"object"`
	Choices []choice `json:"choices"`
	Usage   *usage   `json:"usage,omitempty"`
}

type choice struct {
	Index        int     `json:"index"`
	Text         string  `json:"text"`
	FinishReason *string `json:"finish_reason"`
}

type usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
}

type problem struct {
	Error struct {
		Message string `json:"message"`
		Field   string `json:"field,omitempty"`
	} `json:"error"`
}

func (h *handler) completions(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		h.fail(w, http.StatusMethodNotAllowed, errors.New("POST it"))
		return
	}
	var ask completionRequest
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = json.Unmarshal(body, &ask)
	}
	if err != nil {
		h.fail(w, http.StatusBadRequest, fmt.Errorf("the body is not a request: %w", err))
		return
	}
	if ask.MaxTokens == 0 {
		ask.MaxTokens = 16
	}
	h.open.Add(1)
	defer h.open.Add(-1)
	stream, err := h.engine.Generate(r.Context(), inflight.Request{
		Prompt:     toy.Encode(ask.Prompt),
		MaxTokens:  ask.MaxTokens,
		StopTokens: toy.Encode(ask.Stop),
		Priority:   ask.Priority,
		Salt:       []byte(ask.CacheSalt),
	})
	if err != nil {
		h.fail(w, codeOf(err), err)
		return
	}
	// Its context ends it too, but only when the handler has returned.
	defer stream.Cancel()
	answer := &answer{handler: h, writer: w, control: http.NewResponseController(w), stream: stream}
	answer.id = fmt.Sprintf("cmpl-%d", stream.ID())
	answer.usage.PromptTokens = len(ask.Prompt)
	if ask.Stream {
		err = answer.events()
	} else {
		err = answer.whole()
	}
	switch {
	case err == nil:
		h.completed.Add(1)
	case r.Context().Err() != nil:
		h.cancelled.Add(1)
	case errors.Is(err, inflight.Capacity):
		// Counted as refused.
	default:
		h.failed.Add(1)
	}
}

// codeOf says whose fault an error is, and what to do about it.
func codeOf(err error) int {
	switch {
	case errors.Is(err, inflight.Capacity):
		return http.StatusTooManyRequests
	case errors.Is(err, inflight.ErrShutdown), errors.Is(err, inflight.ErrClosed):
		return http.StatusServiceUnavailable
	case errors.Is(err, inflight.Argument):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// fail answers with an error, before anything else was written.
func (h *handler) fail(w http.ResponseWriter, code int, err error) {
	if code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable {
		h.refused.Add(1)
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(problemOf(err))
}

func problemOf(err error) problem {
	var p problem
	p.Error.Message = err.Error()
	var detail *inflight.Error
	if errors.As(err, &detail) {
		p.Error.Field = detail.Field
	}
	return p
}

// answer is one completion on its way.
type answer struct {
	handler *handler
	writer  http.ResponseWriter
	control *http.ResponseController
	stream  *inflight.Stream
	id      string
	usage   usage
}

// events streams tokens as they come, those that came together in one event. The status waits for
// the first: a request that preempted ones leave no room for in the queue is refused only when the
// scheduler receives it, and the client should know by the status.
func (a *answer) events() error {
	token, more := <-a.stream.Tokens()
	if _, err := a.result(more); err != nil {
		a.handler.fail(a.writer, codeOf(err), err)
		return err
	}
	header := a.writer.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", "no-cache")
	a.writer.WriteHeader(http.StatusOK)
	for ; more; token, more = <-a.stream.Tokens() {
		if err := a.event(a.part(a.gather(token), nil)); err != nil {
			return err
		}
	}
	finish, err := a.stream.Result()
	if err != nil {
		// Too late for a status; a client who has left does not hear it.
		return errors.Join(err, a.event(problemOf(err)))
	}
	reason := finish.String()
	last := a.part("", &reason)
	last.Usage = &a.usage
	if err := a.event(last); err != nil {
		return err
	}
	return a.write([]byte("data: [DONE]\n\n"))
}

// result is the stream's, where it has no more tokens.
func (a *answer) result(more bool) (inflight.Finish, error) {
	if more {
		return inflight.FinishNone, nil
	}
	return a.stream.Result()
}

// gather takes what else there is by now.
func (a *answer) gather(token inflight.Token) string {
	tokens := []inflight.Token{token}
	for more := true; more; {
		select {
		case token, more = <-a.stream.Tokens():
			if more {
				tokens = append(tokens, token)
			}
		default:
			more = false
		}
	}
	a.usage.CompletionTokens += len(tokens)
	return toy.Decode(tokens)
}

func (a *answer) part(text string, reason *string) *completion {
	return &completion{
		ID:      a.id,
		Object:  "text_completion",
		Choices: []choice{{Text: text, FinishReason: reason}},
	}
}

func (a *answer) event(value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return a.write(append(append([]byte("data: "), data...), "\n\n"...))
}

// write sends bytes at once, and gives up on a client who does not take them.
func (a *answer) write(data []byte) error {
	deadline := time.Now().Add(writeTimeout)
	err := a.control.SetWriteDeadline(deadline)
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := a.writer.Write(data); err != nil {
		return err
	}
	return a.control.Flush()
}

// whole answers when all tokens are there.
func (a *answer) whole() error {
	tokens, err := a.stream.Collect()
	if err != nil {
		a.handler.fail(a.writer, codeOf(err), err)
		return err
	}
	finish, _ := a.stream.Result()
	reason := finish.String()
	body := a.part(toy.Decode(tokens), &reason)
	a.usage.CompletionTokens = len(tokens)
	body.Usage = &a.usage
	a.writer.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(a.writer).Encode(body)
}

func (h *handler) health(w http.ResponseWriter, _ *http.Request) {
	if h.engine.Draining() {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

func (h *handler) metrics(w http.ResponseWriter, _ *http.Request) {
	stats := h.engine.Stats()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	for _, metric := range []struct {
		name, kind, help string
		value            uint64
	}{
		{"inflight_steps_total", "counter", "Steps scheduled.", stats.Steps},
		{"inflight_admissions_total", "counter", "Requests admitted.", stats.Admissions},
		{"inflight_preemptions_total", "counter", "Requests that gave way.", stats.Preemptions},
		{"inflight_finished_total", "counter", "Requests that finished.", stats.Finished},
		{"inflight_cancelled_total", "counter", "Requests cancelled.", stats.Cancelled},
		{"inflight_output_tokens_total", "counter", "Tokens delivered.", stats.OutputTokens},
		{"inflight_prefix_queried_tokens_total", "counter", "Tokens looked up in the prefix cache.",
			stats.PrefixQueriedTokens},
		{"inflight_prefix_hit_tokens_total", "counter", "Tokens found in the prefix cache.",
			stats.PrefixHitTokens},
		{"inflight_running", "gauge", "Requests that run.", uint64(stats.NumRunning)},
		{"inflight_waiting", "gauge", "Requests that wait.", uint64(stats.NumWaiting)},
		{"inflight_free_blocks", "gauge", "Blocks of the KV cache that are free.",
			uint64(stats.NumFreeBlocks)},
		{"http_completions_open", "gauge", "Completions being answered.", uint64(h.open.Load())},
		{"http_completions_completed_total", "counter", "Completions answered to their end.",
			uint64(h.completed.Load())},
		{"http_completions_cancelled_total", "counter", "Completions whose client left.",
			uint64(h.cancelled.Load())},
		{"http_completions_refused_total", "counter", "Completions refused with 429 or 503.",
			uint64(h.refused.Load())},
		{"http_completions_failed_total", "counter", "Completions that failed on the way.",
			uint64(h.failed.Load())},
	} {
		_, _ = fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %d\n", metric.name, metric.help,
			metric.name, metric.kind, metric.name, metric.value)
	}
}
