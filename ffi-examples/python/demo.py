#!/usr/bin/env python3
"""Attention against numpy, then a scheduler's batches as they change from step to step.

The "model" has one attention layer and random numbers for weights: a token's query, key and value
are looked up, its next token is the one whose embedding is closest to what attention gives. Every
output is computed again in plain numpy, one request at a time over all its tokens, and compared.

    INFLIGHT_LIBRARY=DIR/lib/libinflight.so python demo.py [timeline.png]
"""

from __future__ import annotations

import sys
from typing import Dict, List, NamedTuple

import numpy as np

import inflight
from inflight import Attention, KVCache, Request, RowFlag, Scheduler, StepBuffer, StepLimits

VOCABULARY, HEADS, KV_HEADS, HEAD_DIM = 512, 4, 2, 64
BLOCKS, BLOCK_SIZE, MAX_TOKENS, MAX_ROWS = 40, 16, 64, 6


class Cell(NamedTuple):
    """A request in a step: tokens that it computes, and whether they are of its prompt."""

    tokens: int
    prefill: bool


class Model:
    """Tables from tokens to queries, keys and values."""

    def __init__(self, rng: np.random.Generator) -> None:
        def table(heads: int) -> np.ndarray:
            return rng.standard_normal((VOCABULARY, heads, HEAD_DIM)).astype(np.float32)

        self.q, self.k, self.v = table(HEADS), table(KV_HEADS), table(KV_HEADS)
        self.unembed = rng.standard_normal((HEADS * HEAD_DIM, VOCABULARY)).astype(np.float32)

    def next_token(self, attended: np.ndarray) -> int:
        return int(np.argmax(attended.reshape(-1) @ self.unembed))

    def dense(self, tokens: List[int]) -> np.ndarray:
        """What the last token attends to: softmax(q k / sqrt(d)) v over all keys, no cache."""
        q = self.q[tokens[-1]].reshape(KV_HEADS, -1, HEAD_DIM)
        logits = np.einsum("hgd,thd->hgt", q, self.k[tokens]) / np.sqrt(HEAD_DIM)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("hgt,thd->hgd", weights, self.v[tokens]).reshape(HEADS, HEAD_DIM)


def serve(model: Model, prompts: Dict[int, List[int]], lengths: Dict[int, int]):
    """Runs all requests; their tokens, the largest difference to numpy, and the timeline."""
    pool = np.full((2, BLOCKS, BLOCK_SIZE, KV_HEADS, HEAD_DIM), np.nan, np.float32)
    cache = KVCache(pool[0], pool[1])
    # Tables share blocks, so together they may be longer than the pool.
    limits = StepLimits(MAX_ROWS, MAX_TOKENS, MAX_ROWS * BLOCKS, BLOCKS * BLOCK_SIZE)
    tokens = {request: list(prompt) for request, prompt in prompts.items()}
    timeline: List[Dict[int, Cell]] = []
    worst = 0.0
    with (
        Scheduler(
            num_blocks=BLOCKS,
            block_size=BLOCK_SIZE,
            max_num_seqs=MAX_ROWS,
            max_num_batched_tokens=MAX_TOKENS,
        ) as scheduler,
        inflight.Device.cpu() as device,
        Attention(device, limits, HEADS, KV_HEADS, HEAD_DIM) as attention,
        StepBuffer(device, limits, [attention]) as buffer,
    ):
        waiting = list(prompts)
        while True:
            if waiting and len(timeline) % 2 == 0:  # one comes every other step
                request = waiting.pop(0)
                scheduler.submit(Request(request, prompts[request], lengths[request]))
            step = scheduler.schedule(len(timeline))
            if step.num_rows == 0 and not waiting:
                step.abandon()
                break
            given = step.tokens
            attention.plan(step, BLOCKS)
            buffer.upload(step)
            inflight.append(buffer, model.k[given], model.v[given], cache)
            attended = attention.run(buffer, model.q[given], cache)

            sampled = []
            rows = step.rows
            sampling = rows[(rows["flags"] & RowFlag.SAMPLES) != 0]
            for request, at in zip(sampling["request_id"].tolist(), step.logits_indices):
                dense = model.dense(tokens[request])
                worst = max(worst, float(np.abs(attended[at] - dense).max()))
                sampled.append(model.next_token(attended[at]))
                tokens[request].append(sampled[-1])
            timeline.append(
                {
                    int(row["request_id"]): Cell(
                        int(row["num_tokens"]), not row["flags"] & RowFlag.DECODES
                    )
                    for row in rows
                }
            )
            step.commit(sampled)
        stats = scheduler.stats()
    return tokens, worst, timeline, stats


def draw(timeline: List[Dict[int, Cell]], requests: List[int]) -> None:
    """A line a request, a column a step: # computes a prompt, = decodes, . is not there."""
    width = len(str(max(requests)))
    for request in requests:
        cells = (step.get(request) for step in timeline)
        line = "".join("." if c is None else "#" if c.prefill else "=" for c in cells)
        print(f"request {request:{width}} {line}")
    totals = [sum(cell.tokens for cell in step.values()) for step in timeline]
    bars = "".join(" ▁▂▃▄▅▆▇█"[-(-total * 8 // MAX_TOKENS)] for total in totals)
    print(f"{'tokens':{width + 8}} {bars}  of {MAX_TOKENS} a step")


def plot(timeline: List[Dict[int, Cell]], requests: List[int], path: str) -> bool:
    """The same as a picture, where matplotlib is installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return False
    figure, (rows, load) = pyplot.subplots(
        2, 1, sharex=True, figsize=(9, 5), height_ratios=[3, 1], layout="constrained"
    )
    for prefill, colour in ((True, "tab:orange"), (False, "tab:blue")):
        label = "prompt" if prefill else "decode"
        for request in requests:
            spans = [
                (number, 1)
                for number, step in enumerate(timeline)
                if request in step and step[request].prefill == prefill
            ]
            rows.broken_barh(spans, (request - 0.4, 0.8), color=colour, label=label)
            label = None
        tokens = [sum(c.tokens for c in s.values() if c.prefill == prefill) for s in timeline]
        below = [sum(c.tokens for c in s.values() if c.prefill) for s in timeline]
        starts = [number + 0.5 for number in range(len(timeline))]
        load.bar(starts, tokens, 1, bottom=None if prefill else below, color=colour)
    rows.set(ylabel="request", yticks=requests)
    rows.invert_yaxis()
    rows.legend(loc="lower left")
    load.set(xlabel="step", ylabel="tokens")
    figure.savefig(path, dpi=120)
    return True


def main() -> int:
    rng = np.random.default_rng(2024)
    model = Model(rng)
    shared = rng.integers(VOCABULARY, size=48).tolist()  # a system prompt of three blocks
    prompts = {
        i: shared + rng.integers(VOCABULARY, size=int(n)).tolist()
        for i, n in enumerate(rng.integers(4, 120, size=12))
    }
    lengths = {i: int(n) for i, n in enumerate(rng.integers(4, 28, size=12))}
    print(f"inflight {inflight.version()} on {inflight.Device.cpu(threads=1).info().name}")
    tokens, worst, timeline, stats = serve(model, prompts, lengths)
    draw(timeline, list(prompts))
    print(
        f"{len(timeline)} steps, {stats.output_tokens} tokens, "
        f"{stats.prefix_hit_tokens} of {stats.prefix_queried_tokens} prompt tokens were cached, "
        f"{stats.preemptions} preemptions"
    )
    print(f"largest difference between attention and numpy: {worst:.1e}")
    path = sys.argv[1] if len(sys.argv) > 1 else "timeline.png"
    print(f"drew {path}" if plot(timeline, list(prompts), path) else "no matplotlib: no picture")
    complete = all(len(tokens[i]) - len(prompts[i]) == lengths[i] for i in prompts)
    return 0 if complete and worst < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
