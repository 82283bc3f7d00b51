// Code generated from inflight.h by tests/header; DO NOT EDIT.

package inflight

// Descriptions are those of inflight.h: names in them are C's.

// #include "boundary.h"
import "C"

import (
	"time"
	"unsafe"
)

// Status says in a number why a call failed. It is an error itself, for errors.Is.
type Status int32

// Each Status.
const (
	// StatusInvalidArgument: An argument, or a field of one, is outside its range. Also NULL where
	// it may not be, and pointers that are not aligned as their type asks for.
	StatusInvalidArgument Status = C.INFLIGHT_STATUS_INVALID_ARGUMENT
	// StatusDuplicateRequest: A request of this id has not finished yet.
	StatusDuplicateRequest Status = C.INFLIGHT_STATUS_DUPLICATE_REQUEST
	// StatusUnknownRequest: No request of this id is waiting or running.
	StatusUnknownRequest Status = C.INFLIGHT_STATUS_UNKNOWN_REQUEST
	// StatusPromptTooLong: The prompt leaves no room for one output token below `max_model_len`.
	StatusPromptTooLong Status = C.INFLIGHT_STATUS_PROMPT_TOO_LONG
	// StatusNeverFits: The request would not fit even if it had the whole cache to itself.
	StatusNeverFits Status = C.INFLIGHT_STATUS_NEVER_FITS
	// StatusUnknownStep: The step is not in flight: never scheduled, or already committed or
	// abandoned.
	StatusUnknownStep Status = C.INFLIGHT_STATUS_UNKNOWN_STEP
	// StatusStepOutOfOrder: Steps are committed oldest first and abandoned newest first.
	StatusStepOutOfOrder Status = C.INFLIGHT_STATUS_STEP_OUT_OF_ORDER
	// StatusOutputMismatch: The outputs do not match the rows of the step.
	StatusOutputMismatch Status = C.INFLIGHT_STATUS_OUTPUT_MISMATCH
	// StatusStructSize: The first field of a struct is not its size, or the size of one that this
	// library does not know: older than the first version, or newer with fields set that are
	// unknown here.
	StatusStructSize Status = C.INFLIGHT_STATUS_STRUCT_SIZE
	// StatusInUse: Another thread is inside a call with the same handle, which is for one at a
	// time.
	StatusInUse Status = C.INFLIGHT_STATUS_IN_USE
	// StatusClosed: The scheduler of a submitter has been freed, or a call with it panicked: it
	// takes no more requests.
	StatusClosed Status = C.INFLIGHT_STATUS_CLOSED
	// StatusForked: The object was made before `fork`, by a parent of this process. It can be
	// freed; make another in this process.
	StatusForked Status = C.INFLIGHT_STATUS_FORKED
	// StatusQueueFull: `max_waiting` requests wait already.
	StatusQueueFull Status = C.INFLIGHT_STATUS_QUEUE_FULL
	// StatusOutOfBlocks: The pool cannot give that many blocks now.
	StatusOutOfBlocks Status = C.INFLIGHT_STATUS_OUT_OF_BLOCKS
	// StatusTooManyStepsInFlight: `max_steps_in_flight` steps await their commit.
	StatusTooManyStepsInFlight Status = C.INFLIGHT_STATUS_TOO_MANY_STEPS_IN_FLIGHT
	// StatusStalled: Requests wait, nothing runs, and the policy admits none of them.
	StatusStalled Status = C.INFLIGHT_STATUS_STALLED
	// StatusOutOfMemory: The process has too little memory left for what was asked.
	StatusOutOfMemory Status = C.INFLIGHT_STATUS_OUT_OF_MEMORY
	// StatusDevice: The device could not run the step.
	StatusDevice Status = C.INFLIGHT_STATUS_DEVICE
	// StatusCUDA: A call of the CUDA driver failed.
	StatusCUDA Status = C.INFLIGHT_STATUS_CUDA
	// StatusOutOfDeviceMemory: The device has too little memory left.
	StatusOutOfDeviceMemory Status = C.INFLIGHT_STATUS_OUT_OF_DEVICE_MEMORY
	// StatusNoCUDA: CUDA cannot be used on this machine.
	StatusNoCUDA Status = C.INFLIGHT_STATUS_NO_CUDA
	// StatusNoKernelImage: This build has no kernels that the device can run, or its driver: one
	// that is older than the toolkit that compiled them allows. The message says which, and what to
	// do.
	StatusNoKernelImage Status = C.INFLIGHT_STATUS_NO_KERNEL_IMAGE
	// StatusUnsupported: The device, or this build, does not offer what was asked for. No call of
	// this version returns it.
	StatusUnsupported Status = C.INFLIGHT_STATUS_UNSUPPORTED
	// StatusCorrupt: An invariant does not hold: a bug in the library.
	StatusCorrupt Status = C.INFLIGHT_STATUS_CORRUPT
	// StatusPanic: The library panicked: a bug in it. The handle is poisoned.
	StatusPanic Status = C.INFLIGHT_STATUS_PANIC
	// StatusPoisoned: An earlier call with this handle panicked: it can only be freed.
	StatusPoisoned Status = C.INFLIGHT_STATUS_POISONED
)

// Policy decides who runs and who gives way.
type Policy uint32

// Each Policy.
const (
	// Continuous: First come, first served; admits while blocks are free, and the request admitted
	// last gives way: vLLM's rules. The default.
	Continuous Policy = C.INFLIGHT_POLICY_CONTINUOUS
	// Static: Request-level batching, the baseline: a batch runs until its last request has ended.
	Static Policy = C.INFLIGHT_POLICY_STATIC
	// Priority: Lowest `priority` value first; the least urgent gives way. Waiting makes up for it:
	// 256 admissions of others count as one level, and who has seen 1,024 goes first whatever its
	// priority. These numbers are fixed here.
	Priority Policy = C.INFLIGHT_POLICY_PRIORITY
	// NoEvict: No request is admitted that might have to be preempted: TensorRT-LLM's default.
	NoEvict Policy = C.INFLIGHT_POLICY_NO_EVICT
	// MaxUtilization: Admits whatever fits now: TensorRT-LLM's MAX_UTILIZATION.
	MaxUtilization Policy = C.INFLIGHT_POLICY_MAX_UTILIZATION
	// Orca: Iteration-level admission with worst-case memory: Orca.
	Orca Policy = C.INFLIGHT_POLICY_ORCA
)

// RowFlags say what a row does.
type RowFlags uint32

// Each RowFlags.
const (
	// RowSamples: The row reaches its request's newest token and so samples: a chunk of a prompt
	// does not.
	RowSamples RowFlags = C.INFLIGHT_ROW_SAMPLES
	// RowDecodes: The row computes just its request's newest token (and drafts), having output
	// before.
	RowDecodes RowFlags = C.INFLIGHT_ROW_DECODES
	// RowAdmitted: The row's request was admitted in this step.
	RowAdmitted RowFlags = C.INFLIGHT_ROW_ADMITTED
)

// BlockOpKind says between which pools a block is copied.
type BlockOpKind uint32

// Each BlockOpKind.
const (
	// BlockCopy: Device to device: a sequence is about to write to a block that it shares.
	BlockCopy BlockOpKind = C.INFLIGHT_BLOCK_COPY
	// BlockSwapOut: Device to host.
	BlockSwapOut BlockOpKind = C.INFLIGHT_BLOCK_SWAP_OUT
	// BlockSwapIn: Host to device.
	BlockSwapIn BlockOpKind = C.INFLIGHT_BLOCK_SWAP_IN
)

// Finish is why a request ended.
type Finish uint32

// Each Finish.
const (
	// FinishNone: The request goes on.
	FinishNone Finish = C.INFLIGHT_FINISH_NONE
	// FinishEOS: It sampled its end-of-sequence token.
	FinishEOS Finish = C.INFLIGHT_FINISH_EOS
	// FinishStopToken: It sampled one of its stop tokens.
	FinishStopToken Finish = C.INFLIGHT_FINISH_STOP_TOKEN
	// FinishLength: It reached `max_tokens` or `max_model_len`.
	FinishLength Finish = C.INFLIGHT_FINISH_LENGTH
	// FinishRepetition: Its output repeats itself.
	FinishRepetition Finish = C.INFLIGHT_FINISH_REPETITION
	// FinishStopped: The caller ended it: `inflight_submitter_finish`.
	FinishStopped Finish = C.INFLIGHT_FINISH_STOPPED
)

// EventKind is what happened to a request.
type EventKind uint32

// Each EventKind.
const (
	// EventRefused: A request that a submitter handed over cannot run: `status` says why. For
	// DUPLICATE_REQUEST the id is that of another request as well, which goes on.
	EventRefused EventKind = C.INFLIGHT_EVENT_REFUSED
	// EventFinished: A request has finished: `finish` says why.
	EventFinished EventKind = C.INFLIGHT_EVENT_FINISHED
	// EventCancelled: A request was cancelled through a submitter.
	EventCancelled EventKind = C.INFLIGHT_EVENT_CANCELLED
	// EventPreempted: A request had to give way in step `step_id`, and waits again. It goes on
	// later.
	EventPreempted EventKind = C.INFLIGHT_EVENT_PREEMPTED
)

// Row is an inflight_row. One request's share of a step. In arrays `row_size` bytes from one to the
// next.
type Row struct {
	// RequestID: The request.
	RequestID uint64
	// NumTokens: Tokens it computes, drafts included; at least 1.
	NumTokens uint32
	// NumComputed: Tokens whose KV is there before the step: the position of its first token.
	NumComputed uint32
	// NumDraft: Draft tokens at the end of its tokens.
	NumDraft uint32
	// NumOutput: Tokens it will have output once everything in flight has returned, this step
	// excluded.
	NumOutput uint32
	// Flags: `INFLIGHT_ROW_*`, or-ed.
	Flags RowFlags
	// _: 0.
	_ uint32
}

// Row lies over C's.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(Row{})-C.sizeof_inflight_row]
	_ = [1]struct{}{}[unsafe.Offsetof(Row{}.RequestID)-unsafe.Offsetof(C.inflight_row{}.request_id)]
	_ = [1]struct{}{}[unsafe.Offsetof(Row{}.NumTokens)-unsafe.Offsetof(C.inflight_row{}.num_tokens)]
	_ = [1]struct{}{}[unsafe.Offsetof(Row{}.NumComputed)-unsafe.Offsetof(C.inflight_row{}.num_computed)]
	_ = [1]struct{}{}[unsafe.Offsetof(Row{}.NumDraft)-unsafe.Offsetof(C.inflight_row{}.num_draft)]
	_ = [1]struct{}{}[unsafe.Offsetof(Row{}.NumOutput)-unsafe.Offsetof(C.inflight_row{}.num_output)]
	_ = [1]struct{}{}[unsafe.Offsetof(Row{}.Flags)-unsafe.Offsetof(C.inflight_row{}.flags)]
)

// PendingToken is an inflight_pending_token. An input token that is not known yet, with `overlap`:
// the device takes it from an earlier step. In arrays `pending_size` bytes from one to the next.
type PendingToken struct {
	// Token: Index into `tokens`.
	Token uint32
	// StepsBack: The step that samples it is `step_id - steps_back`; at least 1. Steps that were
	// abandoned count, since their ids are not given again.
	StepsBack uint32
	// Logits: Index among that step's logits.
	Logits uint32
}

// PendingToken lies over C's.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(PendingToken{})-C.sizeof_inflight_pending_token]
	_ = [1]struct{}{}[unsafe.Offsetof(PendingToken{}.Token)-unsafe.Offsetof(C.inflight_pending_token{}.token)]
	_ = [1]struct{}{}[unsafe.Offsetof(PendingToken{}.StepsBack)-unsafe.Offsetof(C.inflight_pending_token{}.steps_back)]
	_ = [1]struct{}{}[unsafe.Offsetof(PendingToken{}.Logits)-unsafe.Offsetof(C.inflight_pending_token{}.logits)]
)

// BlockOp is an inflight_block_op. A copy of a block, in every layer's K and V, that the device
// makes before the step's kernels. In arrays `block_op_size` bytes from one to the next, or what
// the caller passes as `op_size`.
type BlockOp struct {
	// Kind: `INFLIGHT_BLOCK_*`.
	Kind BlockOpKind
	// Src: Block read: of the host pool for a swap in, else of the device pool.
	Src uint32
	// Dst: Block written: of the host pool for a swap out, else of the device pool.
	Dst uint32
}

// BlockOp lies over C's.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(BlockOp{})-C.sizeof_inflight_block_op]
	_ = [1]struct{}{}[unsafe.Offsetof(BlockOp{}.Kind)-unsafe.Offsetof(C.inflight_block_op{}.kind)]
	_ = [1]struct{}{}[unsafe.Offsetof(BlockOp{}.Src)-unsafe.Offsetof(C.inflight_block_op{}.src)]
	_ = [1]struct{}{}[unsafe.Offsetof(BlockOp{}.Dst)-unsafe.Offsetof(C.inflight_block_op{}.dst)]
)

// Output is an inflight_output. What a commit delivers of one request. In arrays `output_size`
// bytes from one to the next.
type Output struct {
	// RequestID: The request.
	RequestID uint64
	// firstToken: Its tokens are `tokens[first_token..first_token + num_tokens]` of the view.
	firstToken uint32
	// numTokens: Its tokens in this commit.
	numTokens uint32
	// Finish: `INFLIGHT_FINISH_*`: set with its last token.
	Finish Finish
	// StopToken: The stop token that ended it, or `INFLIGHT_NO_TOKEN`.
	StopToken uint32
	// result: Where `finish` is not `INFLIGHT_FINISH_NONE`: its counts and times are
	// `results[result]` of the view.
	result uint32
	// _: 0.
	_ uint32
}

// Output lies over C's.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(Output{})-C.sizeof_inflight_output]
	_ = [1]struct{}{}[unsafe.Offsetof(Output{}.RequestID)-unsafe.Offsetof(C.inflight_output{}.request_id)]
	_ = [1]struct{}{}[unsafe.Offsetof(Output{}.firstToken)-unsafe.Offsetof(C.inflight_output{}.first_token)]
	_ = [1]struct{}{}[unsafe.Offsetof(Output{}.numTokens)-unsafe.Offsetof(C.inflight_output{}.num_tokens)]
	_ = [1]struct{}{}[unsafe.Offsetof(Output{}.Finish)-unsafe.Offsetof(C.inflight_output{}.finish)]
	_ = [1]struct{}{}[unsafe.Offsetof(Output{}.StopToken)-unsafe.Offsetof(C.inflight_output{}.stop_token)]
	_ = [1]struct{}{}[unsafe.Offsetof(Output{}.result)-unsafe.Offsetof(C.inflight_output{}.result)]
)

// Event is an inflight_event. Something that happened to a request. Kinds may be added: pass over
// those that you do not know. In arrays `event_size` bytes from one to the next.
type Event struct {
	// RequestID: The request.
	RequestID uint64
	// Client: Its `client`, which tells requests of one id apart.
	Client uint64
	// StepID: The step with which it happened, or 2^64 - 1.
	StepID uint64
	// Kind: `INFLIGHT_EVENT_*`.
	Kind EventKind
	// Status: Why it was refused: an `inflight_status`; else 0.
	Status Status
	// Finish: Why it finished: `INFLIGHT_FINISH_*`; else `INFLIGHT_FINISH_NONE`.
	Finish Finish
	// StopToken: The stop token that ended it, or `INFLIGHT_NO_TOKEN`.
	StopToken uint32
	// _: Zeros.
	_ [2]uint64
	// Result: Its counts and times, where it has finished or was cancelled; else zeros, and no
	// times.
	Result RequestResult
}

// Event lies over C's.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(Event{})-C.sizeof_inflight_event]
	_ = [1]struct{}{}[unsafe.Offsetof(Event{}.RequestID)-unsafe.Offsetof(C.inflight_event{}.request_id)]
	_ = [1]struct{}{}[unsafe.Offsetof(Event{}.Client)-unsafe.Offsetof(C.inflight_event{}.client)]
	_ = [1]struct{}{}[unsafe.Offsetof(Event{}.StepID)-unsafe.Offsetof(C.inflight_event{}.step_id)]
	_ = [1]struct{}{}[unsafe.Offsetof(Event{}.Kind)-unsafe.Offsetof(C.inflight_event{}.kind)]
	_ = [1]struct{}{}[unsafe.Offsetof(Event{}.Status)-unsafe.Offsetof(C.inflight_event{}.status)]
	_ = [1]struct{}{}[unsafe.Offsetof(Event{}.Finish)-unsafe.Offsetof(C.inflight_event{}.finish)]
	_ = [1]struct{}{}[unsafe.Offsetof(Event{}.StopToken)-unsafe.Offsetof(C.inflight_event{}.stop_token)]
	_ = [1]struct{}{}[unsafe.Offsetof(Event{}.Result)-unsafe.Offsetof(C.inflight_event{}.result)]
)

// RequestResult is an inflight_request_result. Counts and times of a request at its end: of an
// `inflight_output`, and at the end of an `inflight_event`, which grows with it. In arrays
// `result_size` bytes from one to the next.
type RequestResult struct {
	// FirstScheduledAt: The time given to the `inflight_scheduler_schedule` that first admitted it;
	// 2^64 - 1 where it was not.
	FirstScheduledAt time.Duration
	// FirstTokenAt: The time given to the `inflight_scheduler_schedule` of the step that sampled
	// its first token; 2^64 - 1 where none has been committed.
	FirstTokenAt time.Duration
	// NumPrompt: Tokens of its prompt.
	NumPrompt uint32
	// NumOutput: Tokens that it has output.
	NumOutput uint32
	// NumCached: Tokens that it found in the prefix cache when it was first admitted.
	NumCached uint32
	// NumPreemptions: Times it was preempted.
	NumPreemptions uint32
	// NumDrafts: Draft tokens that were verified.
	NumDrafts uint32
	// NumAccepted: Draft tokens among them that were accepted.
	NumAccepted uint32
}

// RequestResult lies over C's.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(RequestResult{})-C.sizeof_inflight_request_result]
	_ = [1]struct{}{}[unsafe.Offsetof(RequestResult{}.FirstScheduledAt)-unsafe.Offsetof(C.inflight_request_result{}.first_scheduled_at)]
	_ = [1]struct{}{}[unsafe.Offsetof(RequestResult{}.FirstTokenAt)-unsafe.Offsetof(C.inflight_request_result{}.first_token_at)]
	_ = [1]struct{}{}[unsafe.Offsetof(RequestResult{}.NumPrompt)-unsafe.Offsetof(C.inflight_request_result{}.num_prompt)]
	_ = [1]struct{}{}[unsafe.Offsetof(RequestResult{}.NumOutput)-unsafe.Offsetof(C.inflight_request_result{}.num_output)]
	_ = [1]struct{}{}[unsafe.Offsetof(RequestResult{}.NumCached)-unsafe.Offsetof(C.inflight_request_result{}.num_cached)]
	_ = [1]struct{}{}[unsafe.Offsetof(RequestResult{}.NumPreemptions)-unsafe.Offsetof(C.inflight_request_result{}.num_preemptions)]
	_ = [1]struct{}{}[unsafe.Offsetof(RequestResult{}.NumDrafts)-unsafe.Offsetof(C.inflight_request_result{}.num_drafts)]
	_ = [1]struct{}{}[unsafe.Offsetof(RequestResult{}.NumAccepted)-unsafe.Offsetof(C.inflight_request_result{}.num_accepted)]
)

// Content is an inflight_content. Content behind placeholder tokens, such as an image: prompts
// share cached blocks only where it is the same.
type Content struct {
	// ID: Names the content, a digest for example.
	ID []byte
	// Start: First token position it covers.
	Start uint32
	// Len: Tokens it covers.
	Len uint32
}

// fillContent makes C's of one, whose arrays are pinned.
func (p *passed) fillContent(c *C.inflight_content, r *Content) {
	c.id = (*C.uint8_t)(pin(p, r.ID))
	c.id_len = C.size_t(len(r.ID))
	c.start = C.uint32_t(r.Start)
	c.len = C.uint32_t(r.Len)
}

// Request is an inflight_request. A request to generate from a prompt. Everything it points to is
// copied by the call that takes it. What later versions ask of a request is added at its end.
//
// Initialise it with `inflight_request_init`, then set at least `id`, `prompt`, `prompt_len` and
// `max_tokens`.
type Request struct {
	// ID: Chosen by the caller, unique among requests that have not finished.
	ID uint64
	// Prompt: Token ids, none of them `INFLIGHT_NO_TOKEN`; at least one.
	Prompt []Token
	// MaxTokens: Output tokens at most; at least 1. `max_model_len` caps prompt and output
	// together.
	MaxTokens uint32
	// StopTokens: Token ids that end the request when sampled, each reported as the reason, none of
	// them `INFLIGHT_NO_TOKEN`; may be NULL.
	StopTokens []Token
	// Salt: Requests share cached blocks only with requests of the same salt; may be NULL.
	Salt []byte
	// Adapter: Name of the adapter (LoRA) that the request runs with, for the same purpose; may be
	// NULL.
	Adapter []byte
	// Contents: Contents behind placeholder tokens, for the same purpose; may be NULL.
	Contents []Content
	// Client: The client that the request belongs to: for policies that are fair to clients, and
	// for the caller.
	Client uint64
	// Arrival: When it came, in nanoseconds of the clock that `inflight_scheduler_schedule` is
	// given; `INFLIGHT_NOW` by default.
	Arrival time.Duration
	// MinTokens: Outputs below which repetition does not end the request. The end of sequence is
	// not affected: the sampler must not sample it too early.
	MinTokens uint32
	// EOS: Token id that ends the request when sampled; `INFLIGHT_NO_TOKEN` (the default) for none.
	EOS *uint32
	// Priority: Lower runs first, under a policy that looks at it.
	Priority int32
	// RepetitionCount: Repetitions of a pattern at the end of the output that end the request; at
	// least 2, with `repetition_max_pattern` set too, or 0 (the default) for no such rule.
	RepetitionCount uint32
	// RepetitionMinPattern: Shortest pattern looked for, in tokens; 0 reads as 1.
	RepetitionMinPattern uint32
	// RepetitionMaxPattern: Longest pattern looked for, in tokens: at least the shortest, where
	// there is a rule.
	RepetitionMaxPattern uint32
	// SkipPrefixCache: 1 if it must not start from a cached prefix: for requests that want the
	// logits of every prompt position. Its blocks serve others either way.
	SkipPrefixCache bool
}

// fillRequest makes C's of one, whose arrays are pinned.
func (p *passed) fillRequest(c *C.inflight_request, r *Request) {
	c.id = C.uint64_t(r.ID)
	c.prompt = (*C.uint32_t)(pin(p, r.Prompt))
	c.prompt_len = C.size_t(len(r.Prompt))
	c.max_tokens = C.uint32_t(r.MaxTokens)
	c.stop_tokens = (*C.uint32_t)(pin(p, r.StopTokens))
	c.num_stop_tokens = C.size_t(len(r.StopTokens))
	c.salt = (*C.uint8_t)(pin(p, r.Salt))
	c.salt_len = C.size_t(len(r.Salt))
	c.adapter = (*C.uint8_t)(pin(p, r.Adapter))
	c.adapter_len = C.size_t(len(r.Adapter))
	for i := range r.Contents {
		p.contents = append(p.contents, C.inflight_content{})
		p.fillContent(&p.contents[i], &r.Contents[i])
	}
	c.contents = (*C.inflight_content)(pin(p, p.contents))
	c.num_contents = C.size_t(len(r.Contents))
	c.content_size = C.sizeof_inflight_content
	c.client = C.uint64_t(r.Client)
	if r.Arrival > 0 {
		c.arrival = C.uint64_t(r.Arrival)
	}
	c.min_tokens = C.uint32_t(r.MinTokens)
	if r.EOS != nil {
		c.eos = C.uint32_t(*r.EOS)
	}
	c.priority = C.int32_t(r.Priority)
	c.repetition_count = C.uint32_t(r.RepetitionCount)
	c.repetition_min_pattern = C.uint32_t(r.RepetitionMinPattern)
	c.repetition_max_pattern = C.uint32_t(r.RepetitionMaxPattern)
	c.skip_prefix_cache = flag(r.SkipPrefixCache)
}

// Config is an inflight_scheduler_config. What a scheduler is made for.
//
// Initialise it with `inflight_scheduler_config_init`, then set at least `num_blocks`.
type Config struct {
	// NumBlocks: Blocks of the device pool, the null block 0 included: 2 to `INFLIGHT_MAX_COUNT`.
	// Each takes 12 bytes of this process's memory, with `prefix_cache` at most 64.
	NumBlocks int
	// NumHostBlocks: Blocks of the host pool, for `swap`, at most `INFLIGHT_MAX_COUNT`; 0 (the
	// default) for none. Each takes 4 bytes.
	NumHostBlocks int
	// MaxWaiting: Requests that may wait; a submit beyond it is refused. No bound by default.
	MaxWaiting int
	// BlockSize: Tokens per block; 1 to `INFLIGHT_MAX_COUNT`, as the next three. 16 by default.
	BlockSize int
	// MaxNumSeqs: Requests that run at once. 256 by default.
	MaxNumSeqs int
	// MaxNumBatchedTokens: Tokens computed in a step. 8192 by default.
	MaxNumBatchedTokens int
	// MaxModelLen: Tokens of prompt and output together, not 1; 0 (the default) for all that the
	// blocks hold.
	MaxModelLen int
	// LongPrefillTokenThreshold: Tokens that one request may compute in a step while others run or
	// wait, at most `INFLIGHT_MAX_COUNT`; 0 (the default) for no such cap.
	LongPrefillTokenThreshold int
	// MaxStepsInFlight: Steps that may be scheduled before the first is committed; 1 (the default)
	// to `INFLIGHT_MAX_COUNT`.
	MaxStepsInFlight int
	// NoPrefixCache: switches off that full blocks are kept for later requests that start with the
	// same tokens.
	NoPrefixCache bool
	// NoChunkedPrefill: switches off that a prompt may be computed in several steps.
	NoChunkedPrefill bool
	// Overlap: whether a request may run on before its last token has returned: the device takes
	// that token from its own earlier step.
	Overlap bool
	// Swap: whether a preempted request's blocks move to the host pool, while it has room, instead
	// of being computed again.
	Swap bool
	// Policy: `INFLIGHT_POLICY_*`.
	Policy Policy
	// BypassBound: Requests that may pass one that waits for memory; 0 (the default) for none, so
	// that a large request is never starved by small ones.
	BypassBound int
	// BypassLookahead: Requests looked at behind the one that waits, in one step, where
	// `bypass_bound` is not 0.
	BypassLookahead int
	// MaxPaddedRows: The largest number of rows that batches are padded to, for CUDA graphs: 1, 2,
	// 4, then by 8 to 256, by 16 beyond; at most 65536. 0 (the default) for no padding.
	MaxPaddedRows int
	// NoEvents: switches off that events are collected from the creation of the first
	// `inflight_submitter` on, freed or not; the caller then takes them with
	// `inflight_scheduler_events` after each step, until when they are kept, however many.
	NoEvents bool
}

// toC makes C's: 0 is the default.
func (c *Config) toC() (C.inflight_scheduler_config, error) {
	var (
		out C.inflight_scheduler_config
		err error
	)
	C.inflight_scheduler_config_init(&out, C.sizeof_inflight_scheduler_config)
	set64(&err, "num_blocks", c.NumBlocks, &out.num_blocks)
	set64(&err, "num_host_blocks", c.NumHostBlocks, &out.num_host_blocks)
	set64(&err, "max_waiting", c.MaxWaiting, &out.max_waiting)
	set32(&err, "block_size", c.BlockSize, &out.block_size)
	set32(&err, "max_num_seqs", c.MaxNumSeqs, &out.max_num_seqs)
	set32(&err, "max_num_batched_tokens", c.MaxNumBatchedTokens, &out.max_num_batched_tokens)
	set32(&err, "max_model_len", c.MaxModelLen, &out.max_model_len)
	set32(&err, "long_prefill_token_threshold", c.LongPrefillTokenThreshold, &out.long_prefill_token_threshold)
	set32(&err, "max_steps_in_flight", c.MaxStepsInFlight, &out.max_steps_in_flight)
	out.prefix_cache = flag(!c.NoPrefixCache)
	out.chunked_prefill = flag(!c.NoChunkedPrefill)
	out.overlap = flag(c.Overlap)
	out.swap = flag(c.Swap)
	out.policy = C.uint32_t(c.Policy)
	set32(&err, "bypass_bound", c.BypassBound, &out.bypass_bound)
	set32(&err, "bypass_lookahead", c.BypassLookahead, &out.bypass_lookahead)
	set32(&err, "max_padded_rows", c.MaxPaddedRows, &out.max_padded_rows)
	out.events = flag(!c.NoEvents)
	return out, err
}

// Stats is an inflight_scheduler_stats. Counters since a scheduler was made, and its state now.
type Stats struct {
	// Steps: Steps scheduled, empty ones included.
	Steps uint64
	// Admissions: Admissions, those after a preemption included.
	Admissions uint64
	// Preemptions: Preemptions.
	Preemptions uint64
	// Finished: Requests that finished: by themselves, or by a finish of the caller.
	Finished uint64
	// Cancelled: Requests cancelled.
	Cancelled uint64
	// OutputTokens: Tokens delivered.
	OutputTokens uint64
	// PrefixQueriedTokens: Tokens of requests that looked for a cached prefix.
	PrefixQueriedTokens uint64
	// PrefixHitTokens: Tokens among them that were found.
	PrefixHitTokens uint64
	// EvictedBlocks: Blocks whose known content was given up for a new one.
	EvictedBlocks uint64
	// NumRunning: Requests that hold a slot now.
	NumRunning int
	// NumWaiting: Requests that wait now.
	NumWaiting int
	// NumFreeBlocks: Blocks of the device pool that are free now, cached ones included.
	NumFreeBlocks int
	// NumFreeHostBlocks: Blocks of the host pool that are free now.
	NumFreeHostBlocks int
}

// statsOf makes one of C's.
func statsOf(c *C.inflight_scheduler_stats) (of Stats) {
	of.Steps = uint64(c.steps)
	of.Admissions = uint64(c.admissions)
	of.Preemptions = uint64(c.preemptions)
	of.Finished = uint64(c.finished)
	of.Cancelled = uint64(c.cancelled)
	of.OutputTokens = uint64(c.output_tokens)
	of.PrefixQueriedTokens = uint64(c.prefix_queried_tokens)
	of.PrefixHitTokens = uint64(c.prefix_hit_tokens)
	of.EvictedBlocks = uint64(c.evicted_blocks)
	of.NumRunning = int(c.num_running)
	of.NumWaiting = int(c.num_waiting)
	of.NumFreeBlocks = int(c.num_free_blocks)
	of.NumFreeHostBlocks = int(c.num_free_host_blocks)
	return of
}

// Snapshot is an inflight_request_snapshot. A request at this moment.
type Snapshot struct {
	// Client: The client that it belongs to.
	Client uint64
	// Running: 1 if it is among the running requests, 0 if it waits.
	Running bool
	// NumPrompt: Tokens of its prompt.
	NumPrompt int
	// NumOutput: Tokens output so far.
	NumOutput int
	// NumComputed: Tokens whose KV is computed or in flight.
	NumComputed int
	// NumPreemptions: Times it was preempted.
	NumPreemptions int
	// NumCached: Tokens that it found in the prefix cache when it was first admitted.
	NumCached int
	// NumDrafts: Draft tokens that were verified.
	NumDrafts int
	// NumAccepted: Draft tokens among them that were accepted.
	NumAccepted int
	// FirstScheduledAt: The time given to the `inflight_scheduler_schedule` that first admitted it,
	// or 2^64 - 1.
	FirstScheduledAt time.Duration
	// FirstTokenAt: The time given to the `inflight_scheduler_schedule` of the step that sampled
	// its first token, or 2^64 - 1.
	FirstTokenAt time.Duration
}

// snapshotOf makes one of C's.
func snapshotOf(c *C.inflight_request_snapshot) (of Snapshot) {
	of.Client = uint64(c.client)
	of.Running = c.running != 0
	of.NumPrompt = int(c.num_prompt)
	of.NumOutput = int(c.num_output)
	of.NumComputed = int(c.num_computed)
	of.NumPreemptions = int(c.num_preemptions)
	of.NumCached = int(c.num_cached)
	of.NumDrafts = int(c.num_drafts)
	of.NumAccepted = int(c.num_accepted)
	of.FirstScheduledAt = time.Duration(c.first_scheduled_at)
	of.FirstTokenAt = time.Duration(c.first_token_at)
	return of
}
