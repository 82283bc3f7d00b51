package inflight

// #include "boundary.h"
import "C"

import (
	"slices"
	"sync/atomic"
	"unsafe"
)

// Samples says whether the row samples: a chunk of a prompt does not, unless it is the last.
func (r *Row) Samples() bool { return r.Flags&RowSamples != 0 }

// Step is one iteration: which requests compute how many tokens, as a ragged batch. Rows are
// requests, in order: those that were running, then those admitted. With [Config.MaxPaddedRows] the
// arrays by row have [Step.NumPaddedRows] entries, the last of them empty rows.
//
// The slices that its methods return are views of the library's memory, valid until Commit, Abandon
// or the scheduler's Close; they must not be written to. After that the methods return nil.
// [Step.Copy] makes a step that lasts.
//
// Several goroutines may read a step, and one of them then ends it.
type Step struct {
	scheduler *Scheduler
	view      C.inflight_step_view
	blockSize C.uint32_t
	ended     atomic.Bool
}

// over says that the arrays are no longer the step's.
func (s *Step) over() bool {
	return s.ended.Load() || s.scheduler != nil && s.scheduler.closed.Load()
}

// viewOf is an array of a step, or nil where the step is over.
func viewOf[T any](s *Step, from unsafe.Pointer, count C.uint32_t) []T {
	if s.over() {
		return nil
	}
	return unsafe.Slice((*T)(from), int(count))
}

// structsOf is an array of the library's structs: its own memory, or a copy where a newer library has
// larger ones than the header that this package was built with.
func structsOf[T any](from unsafe.Pointer, count int, size C.uint32_t) []T {
	known := unsafe.Sizeof(*new(T))
	if count == 0 || uintptr(size) == known {
		return unsafe.Slice((*T)(from), count)
	}
	structs := make([]T, count)
	for i := range structs {
		structs[i] = *(*T)(unsafe.Add(from, i*int(size)))
	}
	return structs
}

// group returns what the layers have of the cache: all of them the same.
func (s *Step) group() C.inflight_group {
	if s.over() || s.view.num_groups == 0 {
		return C.inflight_group{}
	}
	return *s.view.groups
}

// ID names the step.
func (s *Step) ID() uint64 { return uint64(s.view.step_id) }

// NumRows returns the number of rows; 0 where there was nothing to run.
func (s *Step) NumRows() int { return int(s.view.num_rows) }

// NumPaddedRows returns the number of rows, empty ones included.
func (s *Step) NumPaddedRows() int { return int(s.view.num_padded_rows) }

// NumTokens returns the number of tokens.
func (s *Step) NumTokens() int { return int(s.view.num_tokens) }

// NumSampling returns the number of rows that sample: of tokens that Commit takes.
func (s *Step) NumSampling() int { return int(s.view.num_sampling) }

// BlockSize returns the tokens of a block.
func (s *Step) BlockSize() int { return int(s.blockSize) }

// MaxQueryLen returns the most tokens of a row.
func (s *Step) MaxQueryLen() int { return int(s.view.max_q_len) }

// MaxKVLen returns the most keys of a row, this step's included.
func (s *Step) MaxKVLen() int { return int(s.view.max_kv_len) }

// NumRunning returns the requests that hold a slot, after scheduling.
func (s *Step) NumRunning() int { return int(s.view.num_running) }

// NumWaiting returns the requests that wait, after scheduling.
func (s *Step) NumWaiting() int { return int(s.view.num_waiting) }

// NumFreeBlocks returns the blocks that are free, after scheduling.
func (s *Step) NumFreeBlocks() int { return int(s.view.num_free_blocks) }

// Rows returns the rows, [NumRows].
func (s *Step) Rows() []Row {
	if s.over() {
		return nil
	}
	return structsOf[Row](unsafe.Pointer(s.view.rows), int(s.view.num_rows), s.view.row_size)
}

// Tokens returns the input tokens, row by row, [NumTokens].
func (s *Step) Tokens() []Token {
	return viewOf[Token](s, unsafe.Pointer(s.view.tokens), s.view.num_tokens)
}

// Positions returns the position of each token in its sequence, [NumTokens].
func (s *Step) Positions() []uint32 {
	return viewOf[uint32](s, unsafe.Pointer(s.view.positions), s.view.num_tokens)
}

// SlotMapping returns where each token's KV is written, block * block size + offset, [NumTokens].
func (s *Step) SlotMapping() []int64 {
	return viewOf[int64](s, unsafe.Pointer(s.group().slot_mapping), s.view.num_tokens)
}

// QueryIndptr returns the offsets of rows: row r owns tokens [r] to [r+1], [NumPaddedRows + 1].
func (s *Step) QueryIndptr() []uint32 {
	return viewOf[uint32](s, unsafe.Pointer(s.view.qo_indptr), s.view.num_padded_rows+1)
}

// KVIndptr returns the offsets of block tables: row r reads the blocks of KVIndices from [r] to
// [r+1], [NumPaddedRows + 1].
func (s *Step) KVIndptr() []uint32 {
	return viewOf[uint32](s, unsafe.Pointer(s.group().kv_indptr), s.view.num_padded_rows+1)
}

// KVIndices returns the block tables of the rows, one after the other.
func (s *Step) KVIndices() []uint32 {
	group := s.group()
	return viewOf[uint32](s, unsafe.Pointer(group.kv_indices), group.num_kv_blocks)
}

// KVLastPageLen returns the tokens in each row's last block, this step's included, [NumPaddedRows].
func (s *Step) KVLastPageLen() []uint32 {
	return viewOf[uint32](s, unsafe.Pointer(s.group().kv_last_page_len), s.view.num_padded_rows)
}

// LogitsIndices returns the tokens whose logits are needed: one for each row that samples, and one
// for each of its drafts before it.
func (s *Step) LogitsIndices() []uint32 {
	return viewOf[uint32](s, unsafe.Pointer(s.view.logits_indices), s.view.num_logits)
}

// Pending returns the input tokens that a step in flight samples; Tokens has [NoToken] there.
func (s *Step) Pending() []PendingToken {
	if s.over() {
		return nil
	}
	from, count := unsafe.Pointer(s.view.pending), int(s.view.num_pending)
	return structsOf[PendingToken](from, count, s.view.pending_size)
}

// BlockOps returns the copies to make first, in order.
func (s *Step) BlockOps() []BlockOp {
	if s.over() {
		return nil
	}
	from, count := unsafe.Pointer(s.view.block_ops), int(s.view.num_block_ops)
	return structsOf[BlockOp](from, count, s.view.block_op_size)
}

// Preempted returns the requests that had to give way and wait again.
func (s *Step) Preempted() []uint64 {
	return viewOf[uint64](s, unsafe.Pointer(s.view.preempted), s.view.num_preempted)
}

// Packed returns all arrays in one buffer, header first, as kernels read it.
func (s *Step) Packed() []byte {
	if s.over() {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(s.view.packed)), int(s.view.packed_size))
}

// Copy returns the step with arrays of its own, which last. It cannot be committed: the step that
// it was made from is. A copy of a step that is over is over.
func (s *Step) Copy() *Step {
	c := &Step{view: s.view, blockSize: s.blockSize}
	if s.over() {
		c.ended.Store(true)
		return c
	}
	c.view.rows = (*C.inflight_row)(cloned(s.Rows()))
	c.view.tokens = (*C.uint32_t)(cloned(s.Tokens()))
	c.view.positions = (*C.uint32_t)(cloned(s.Positions()))
	c.view.qo_indptr = (*C.uint32_t)(cloned(s.QueryIndptr()))
	group := s.group()
	group.struct_size = C.sizeof_inflight_group
	group.slot_mapping = (*C.int64_t)(cloned(s.SlotMapping()))
	group.kv_indptr = (*C.uint32_t)(cloned(s.KVIndptr()))
	group.kv_indices = (*C.uint32_t)(cloned(s.KVIndices()))
	group.kv_last_page_len = (*C.uint32_t)(cloned(s.KVLastPageLen()))
	c.view.groups = &group
	c.view.logits_indices = (*C.uint32_t)(cloned(s.LogitsIndices()))
	c.view.pending = (*C.inflight_pending_token)(cloned(s.Pending()))
	c.view.block_ops = (*C.inflight_block_op)(cloned(s.BlockOps()))
	c.view.row_size = C.sizeof_inflight_row
	c.view.pending_size = C.sizeof_inflight_pending_token
	c.view.block_op_size = C.sizeof_inflight_block_op
	c.view.preempted = (*C.uint64_t)(cloned(s.Preempted()))
	c.view.packed = (*C.uint8_t)(cloned(s.Packed()))
	return c
}

func cloned[T any](slice []T) unsafe.Pointer {
	return unsafe.Pointer(unsafe.SliceData(slices.Clone(slice)))
}

// Commit takes the tokens that the rows of the step sampled, one for each that samples, in their
// order, and says what became of the requests. Steps are committed oldest first. Each token is
// delivered once and in order; what was sampled past a request's end, or for one that was cancelled
// meanwhile, is dropped.
//
// After an error the step is still in flight, unless it was not before.
func (s *Step) Commit(tokens []Token) (Outputs, error) {
	return s.commit(tokens, nil)
}

// CommitRagged is Commit for steps with drafts: the i-th row that samples has tokens[indptr[i]] to
// tokens[indptr[i+1]], the accepted drafts and the token after them.
func (s *Step) CommitRagged(tokens []Token, indptr []uint32) (Outputs, error) {
	if len(indptr) == 0 {
		return Outputs{}, &Error{
			Op:      "commit",
			Status:  StatusInvalidArgument,
			Field:   "samples.indptr",
			Message: "has no offsets",
		}
	}
	return s.commit(tokens, indptr)
}

func (s *Step) commit(tokens []Token, indptr []uint32) (Outputs, error) {
	owner := s.scheduler
	boundary, err := owner.enter("commit", s)
	if err != nil {
		return Outputs{}, err
	}
	defer owner.leave()
	status := C.boundary_commit(boundary, s.view.step_id,
		(*C.uint32_t)(unsafe.SliceData(tokens)), C.size_t(len(tokens)),
		(*C.uint32_t)(unsafe.SliceData(indptr)), C.size_t(len(indptr)))
	if status != C.INFLIGHT_STATUS_OK {
		return Outputs{}, failure("commit", status, &boundary.error)
	}
	s.ended.Store(true)
	return Outputs{scheduler: owner, call: owner.calls.Load(), view: boundary.outputs}, nil
}

// Abandon undoes the step, as if it had not been scheduled: for one that was not run, or failed on
// the way. Steps are abandoned newest first. Its tokens are computed again; requests that it
// preempted stay preempted.
func (s *Step) Abandon() error {
	owner := s.scheduler
	boundary, err := owner.enter("abandon", s)
	if err != nil {
		return err
	}
	defer owner.leave()
	status := C.boundary_abandon(boundary, s.view.step_id)
	if status != C.INFLIGHT_STATUS_OK {
		return failure("abandon", status, &boundary.error)
	}
	s.ended.Store(true)
	return nil
}

// String names the reason: "eos", "stop", "length", "repetition", or "".
func (f Finish) String() string {
	switch f {
	case FinishEOS:
		return "eos"
	case FinishStopToken, FinishStopped:
		return "stop"
	case FinishLength:
		return "length"
	case FinishRepetition:
		return "repetition"
	}
	return ""
}

// Outputs is what a commit delivers: a view of the library's memory, valid until the next call with
// the scheduler, from when on it is empty.
type Outputs struct {
	scheduler *Scheduler
	call      uint64
	view      C.inflight_outputs_view
}

func (o *Outputs) valid() bool {
	return o.scheduler != nil && o.scheduler.calls.Load() == o.call
}

// StepID names the step that was committed.
func (o *Outputs) StepID() uint64 { return uint64(o.view.step_id) }

// Len returns the number of requests that got tokens.
func (o *Outputs) Len() int {
	if !o.valid() {
		return 0
	}
	return int(o.view.num_outputs)
}

// At returns the i-th output, in the order of the step's rows.
func (o *Outputs) At(i int) Output {
	return structsOf[Output](unsafe.Pointer(o.view.outputs), o.Len(), o.view.output_size)[i]
}

// Tokens returns the tokens of the i-th output.
func (o *Outputs) Tokens(i int) []Token {
	of := o.At(i)
	all := unsafe.Slice((*Token)(unsafe.Pointer(o.view.tokens)), int(o.view.num_tokens))
	return all[of.firstToken : of.firstToken+of.numTokens : of.firstToken+of.numTokens]
}

// Result returns what the request of the i-th output has come to; false where it goes on.
func (o *Outputs) Result(i int) (RequestResult, bool) {
	of := o.At(i)
	if of.Finish == FinishNone {
		return RequestResult{}, false
	}
	from, count := unsafe.Pointer(o.view.results), int(o.view.num_results)
	return structsOf[RequestResult](from, count, o.view.result_size)[of.result], true
}

// Released returns the requests that gave back their slot and blocks: those that finished, or under
// static batching the whole batch with its last.
func (o *Outputs) Released() []uint64 {
	if !o.valid() {
		return nil
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(o.view.released)), int(o.view.num_released))
}

// NumFreeBlocks returns the blocks that are free after the commit.
func (o *Outputs) NumFreeBlocks() int { return int(o.view.num_free_blocks) }
