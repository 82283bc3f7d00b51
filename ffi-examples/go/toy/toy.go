// Package toy is a language model that is small enough to be checked: its tokens are bytes, its KV
// cache holds the byte of every position, and the next byte follows from all bytes before it, by a
// rule that needs no cache. Output that is right so shows that every byte was written to the right
// slot and every block table led back to it, whatever was batched, preempted or shared.
package toy

import (
	"context"
	"fmt"
	"time"

	"inflight.dev/inflight"
)

const alphabet = "etaoin shrdlucmfwypvbgkqjxz."

// Model is the model, for one engine.
type Model struct {
	// Latency is how long a step takes.
	Latency time.Duration

	blockSize    int
	device, host []inflight.Token
	sampled      []inflight.Token
}

// New makes a model for the cache of a configuration.
func New(config inflight.Config) *Model {
	size := config.BlockSize
	if size == 0 {
		size = 16
	}
	return &Model{
		blockSize: size,
		device:    make([]inflight.Token, config.NumBlocks*size),
		host:      make([]inflight.Token, config.NumHostBlocks*size),
	}
}

// Run implements [inflight.Model].
func (m *Model) Run(ctx context.Context, step *inflight.Step) ([]inflight.Token, error) {
	if m.Latency > 0 {
		select {
		case <-time.After(m.Latency):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	for _, op := range step.BlockOps() {
		if err := m.copyBlock(op); err != nil {
			return nil, err
		}
	}
	tokens := step.Tokens()
	for i, slot := range step.SlotMapping() {
		m.device[slot] = tokens[i]
	}
	indptr, blocks, lastLen := step.KVIndptr(), step.KVIndices(), step.KVLastPageLen()
	m.sampled = m.sampled[:0]
	for r, row := range step.Rows() {
		if row.Samples() {
			sum := m.sum(blocks[indptr[r]:indptr[r+1]], int(lastLen[r]))
			m.sampled = append(m.sampled, letter(sum))
		}
	}
	return m.sampled, nil
}

func (m *Model) copyBlock(op inflight.BlockOp) error {
	from, to := m.device, m.device
	switch op.Kind {
	case inflight.BlockSwapOut:
		to = m.host
	case inflight.BlockSwapIn:
		from = m.host
	case inflight.BlockCopy:
	default:
		return fmt.Errorf("toy: block operation %d is unknown", op.Kind)
	}
	src, dst := int(op.Src)*m.blockSize, int(op.Dst)*m.blockSize
	copy(to[dst:dst+m.blockSize], from[src:src+m.blockSize])
	return nil
}

// sum reads a sequence out of its blocks.
func (m *Model) sum(blocks []uint32, lastLen int) uint32 {
	var sum uint32
	for i, block := range blocks {
		start, size := int(block)*m.blockSize, m.blockSize
		if i == len(blocks)-1 {
			size = lastLen
		}
		for _, token := range m.device[start : start+size] {
			sum = add(sum, token)
		}
	}
	return sum
}

func add(sum uint32, token inflight.Token) uint32 {
	return sum*16777619 + token + 1
}

func letter(sum uint32) inflight.Token {
	return inflight.Token(alphabet[(sum>>7)%uint32(len(alphabet))])
}

// Continue returns n bytes that follow a prompt, by the rule alone.
func Continue(prompt string, n int) string {
	var sum uint32
	for _, b := range []byte(prompt) {
		sum = add(sum, inflight.Token(b))
	}
	out := make([]byte, n)
	for i := range out {
		token := letter(sum)
		out[i] = byte(token)
		sum = add(sum, token)
	}
	return string(out)
}

// Encode returns the tokens of a text.
func Encode(text string) []inflight.Token {
	tokens := make([]inflight.Token, len(text))
	for i := range tokens {
		tokens[i] = inflight.Token(text[i])
	}
	return tokens
}

// Decode returns the text of tokens.
func Decode(tokens []inflight.Token) string {
	text := make([]byte, len(tokens))
	for i, token := range tokens {
		text[i] = byte(token)
	}
	return string(text)
}
