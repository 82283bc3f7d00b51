package inflight

// #include "border.h"
import "C"

import "math"

// Policy decides who runs and who gives way.
type Policy uint32

// Policies.
const (
	// Continuous is first come, first served; it admits while blocks are free, and the request
	// admitted last gives way: vLLM's rules. The default.
	Continuous Policy = C.INFLIGHT_POLICY_CONTINUOUS
	// Static is request-level batching, the baseline: a batch runs until its last request has ended.
	Static Policy = C.INFLIGHT_POLICY_STATIC
	// Priority runs the lowest [Request.Priority] first, with ageing; the least urgent gives way.
	Priority Policy = C.INFLIGHT_POLICY_PRIORITY
	// NoEvict admits nobody who might have to give way: TensorRT-LLM's default.
	NoEvict Policy = C.INFLIGHT_POLICY_NO_EVICT
	// MaxUtilization admits whatever fits now: TensorRT-LLM's MAX_UTILIZATION.
	MaxUtilization Policy = C.INFLIGHT_POLICY_MAX_UTILIZATION
	// Orca is iteration-level admission with worst-case memory.
	Orca Policy = C.INFLIGHT_POLICY_ORCA
)

// Config is what a scheduler is made for. NumBlocks has to be set; a zero elsewhere is the default.
type Config struct {
	// NumBlocks is the size of the device pool, the null block 0 included: at least 2.
	NumBlocks int
	// NumHostBlocks is the size of the host pool, for Swap.
	NumHostBlocks int
	// BlockSize is the tokens of a block: 16 by default.
	BlockSize int
	// MaxWaiting is how many requests may wait, beyond which a submit is refused with
	// [StatusQueueFull]; no bound by default.
	MaxWaiting int
	// MaxNumSeqs is how many requests run at once: 256 by default.
	MaxNumSeqs int
	// MaxNumBatchedTokens is how many tokens a step computes: 8192 by default.
	MaxNumBatchedTokens int
	// MaxModelLen is the tokens of prompt and output together: by default all that the blocks hold.
	MaxModelLen int
	// LongPrefillTokenThreshold caps the tokens that one request computes in a step while others
	// run or wait; no cap by default.
	LongPrefillTokenThreshold int
	// MaxStepsInFlight is how many steps may be scheduled before the first is committed: 1 by
	// default.
	MaxStepsInFlight int
	// NoPrefixCache gives full blocks up when their request ends, rather than keep them for later
	// requests that start with the same tokens.
	NoPrefixCache bool
	// NoChunkedPrefill computes a prompt in one step or not at all.
	NoChunkedPrefill bool
	// Overlap lets a request run on before its last token has returned: the device takes that
	// token from its own earlier step, as [Step.Pending] says.
	Overlap bool
	// Swap moves a preempted request's blocks to the host pool, while it has room, instead of
	// computing them again.
	Swap bool
	// Policy is [Continuous] by default.
	Policy Policy
	// BypassBound is how many requests may pass one that waits for memory; none by default, so that
	// a large request is never starved by small ones.
	BypassBound int
	// BypassLookahead is how many requests behind the one that waits are looked at in one step,
	// where BypassBound is not 0.
	BypassLookahead int
	// MaxPaddedRows is the largest number of rows that batches are padded to, for CUDA graphs; no
	// padding by default.
	MaxPaddedRows int
	// NoEvents collects no events. Without it they are collected from the first [Submitter] on, and
	// [Scheduler.Events] has to be called now and again.
	NoEvents bool
}

func (c *Config) toC() (C.inflight_scheduler_config, error) {
	var out C.inflight_scheduler_config
	C.inflight_scheduler_config_init(&out, C.sizeof_inflight_scheduler_config)
	for _, count := range []struct {
		name  string
		value int
		to    *C.uint64_t
	}{
		{"num_blocks", c.NumBlocks, &out.num_blocks},
		{"num_host_blocks", c.NumHostBlocks, &out.num_host_blocks},
		{"max_waiting", c.MaxWaiting, &out.max_waiting},
	} {
		if count.value < 0 {
			return out, badArgument("create", count.name, count.value)
		}
		if count.value != 0 {
			*count.to = C.uint64_t(count.value)
		}
	}
	for _, limit := range []struct {
		name  string
		value int
		to    *C.uint32_t
	}{
		{"block_size", c.BlockSize, &out.block_size},
		{"max_num_seqs", c.MaxNumSeqs, &out.max_num_seqs},
		{"max_num_batched_tokens", c.MaxNumBatchedTokens, &out.max_num_batched_tokens},
		{"max_model_len", c.MaxModelLen, &out.max_model_len},
		{"long_prefill_token_threshold", c.LongPrefillTokenThreshold,
			&out.long_prefill_token_threshold},
		{"max_steps_in_flight", c.MaxStepsInFlight, &out.max_steps_in_flight},
		{"bypass_bound", c.BypassBound, &out.bypass_bound},
		{"bypass_lookahead", c.BypassLookahead, &out.bypass_lookahead},
		{"max_padded_rows", c.MaxPaddedRows, &out.max_padded_rows},
	} {
		if limit.value < 0 || int64(limit.value) > math.MaxUint32 {
			return out, badArgument("create", limit.name, limit.value)
		}
		if limit.value != 0 {
			*limit.to = C.uint32_t(limit.value)
		}
	}
	out.prefix_cache = flag(!c.NoPrefixCache)
	out.chunked_prefill = flag(!c.NoChunkedPrefill)
	out.overlap = flag(c.Overlap)
	out.swap = flag(c.Swap)
	out.policy = C.uint32_t(c.Policy)
	out.events = flag(!c.NoEvents)
	return out, nil
}

func flag(set bool) C.uint32_t {
	if set {
		return 1
	}
	return 0
}
