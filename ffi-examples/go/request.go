package inflight

// #include "border.h"
import "C"

import (
	"runtime"
	"sync"
	"time"
	"unsafe"
)

// Request asks to generate from a prompt. At least ID, Prompt and MaxTokens are to be set. It is
// copied by the call that takes it, which nobody may change it during.
type Request struct {
	// ID is unique among requests that have not finished. An [Engine] chooses it itself.
	ID uint64
	// Prompt has at least one token.
	Prompt []Token
	// MaxTokens is the output at most; at least 1. [Config.MaxModelLen] caps prompt and output
	// together.
	MaxTokens uint32
	// MinTokens is the output below which repetition does not end the request. The end of sequence
	// is not affected: whoever samples must not sample it too early.
	MinTokens uint32
	// EOS ends the request when sampled; nil for no such token.
	EOS *Token
	// StopTokens end the request when sampled; the one that did is reported.
	StopTokens []Token
	// Repetition ends a request whose output repeats itself; nil for no such rule.
	Repetition *Repetition
	// Client is whom the request belongs to: for policies that are fair to clients.
	Client uint64
	// Priority is for the policy of that name: lower runs first.
	Priority int32
	// Arrival is when it came, by the clock of [Scheduler.Schedule]; zero for now.
	Arrival time.Duration
	// Salt keeps requests apart: blocks of the prefix cache are shared only where it is the same.
	Salt []byte
	// Adapter is the name of the adapter (LoRA) that the request runs with, for the same purpose.
	Adapter []byte
	// Contents are behind placeholder tokens, for the same purpose.
	Contents []Content
	// SkipPrefixCache computes the whole prompt: for requests that want the logits of every
	// position. Its blocks serve others either way.
	SkipPrefixCache bool
}

// Repetition is when an output counts as repeating itself.
type Repetition struct {
	// Count is the repetitions of a pattern at the end of the output; at least 2.
	Count uint32
	// MinPattern is the shortest pattern looked for, in tokens; 0 reads as 1.
	MinPattern uint32
	// MaxPattern is the longest pattern looked for, in tokens.
	MaxPattern uint32
}

// Content is what stands behind placeholder tokens, such as an image: prompts share cached blocks
// only where it is the same.
type Content struct {
	// ID names the content, a digest for example.
	ID []byte
	// Start is the first token position that it covers.
	Start uint32
	// Len is how many tokens it covers.
	Len uint32
}

// passed is a request as C sees it. Its arrays are Go's, and pinned while a call looks at them.
type passed struct {
	request  C.inflight_request
	contents []C.inflight_content
	err      C.inflight_error
	pinner   runtime.Pinner
}

var passedPool = sync.Pool{New: func() any {
	p := new(passed)
	C.inflight_error_init(&p.err, C.sizeof_inflight_error)
	return p
}}

// pass makes C's view of a request, which release ends.
func pass(r *Request) *passed {
	p := passedPool.Get().(*passed)
	// Through the field: what cgo checks then is the field, and not all of p.
	C.inflight_request_init(&p.request, C.sizeof_inflight_request)
	c := &p.request
	c.id = C.uint64_t(r.ID)
	c.prompt, c.prompt_len = (*C.uint32_t)(pin(p, r.Prompt)), C.size_t(len(r.Prompt))
	c.stop_tokens = (*C.uint32_t)(pin(p, r.StopTokens))
	c.num_stop_tokens = C.size_t(len(r.StopTokens))
	c.salt, c.salt_len = (*C.uint8_t)(pin(p, r.Salt)), C.size_t(len(r.Salt))
	c.adapter, c.adapter_len = (*C.uint8_t)(pin(p, r.Adapter)), C.size_t(len(r.Adapter))
	for _, content := range r.Contents {
		p.contents = append(p.contents, C.inflight_content{
			id:     (*C.uint8_t)(pin(p, content.ID)),
			id_len: C.size_t(len(content.ID)),
			start:  C.uint32_t(content.Start),
			len:    C.uint32_t(content.Len),
		})
	}
	c.contents = (*C.inflight_content)(pin(p, p.contents))
	c.num_contents = C.size_t(len(p.contents))
	c.client = C.uint64_t(r.Client)
	if r.Arrival > 0 {
		c.arrival = C.uint64_t(r.Arrival)
	}
	c.max_tokens = C.uint32_t(r.MaxTokens)
	c.min_tokens = C.uint32_t(r.MinTokens)
	if r.EOS != nil {
		c.eos = C.uint32_t(*r.EOS)
	}
	c.priority = C.int32_t(r.Priority)
	if r.Repetition != nil {
		c.repetition_count = C.uint32_t(r.Repetition.Count)
		c.repetition_min_pattern = C.uint32_t(r.Repetition.MinPattern)
		c.repetition_max_pattern = C.uint32_t(r.Repetition.MaxPattern)
	}
	c.skip_prefix_cache = flag(r.SkipPrefixCache)
	return p
}

// release forgets what was passed.
func (p *passed) release() {
	p.pinner.Unpin()
	p.request = C.inflight_request{}
	clear(p.contents)
	p.contents = p.contents[:0]
	passedPool.Put(p)
}

// pin returns where a slice is, which the collector then leaves there; nil for an empty one.
func pin[T any](p *passed, slice []T) unsafe.Pointer {
	if len(slice) == 0 {
		return nil
	}
	data := unsafe.SliceData(slice)
	p.pinner.Pin(data)
	return unsafe.Pointer(data)
}
