#!/usr/bin/env python3
"""A language model behind a continuous batch, in one file, to be read from top to bottom.

    python3 llm.py MODEL.gguf "prompt" ["prompt" ...] [--max-tokens N] [--serve PORT]

A *step* runs the model once, over tokens of many requests laid end to end: one *row* a request, with
its prompt, or a chunk of it, or the one token that it sampled last. Who is in the batch is decided
anew at every step, so a request joins as soon as there is room and leaves with its last token.
inflight decides it (`Scheduler`), knows which block of the KV cache holds which token, and computes
attention through those blocks; the rest of a transformer is matrix products. Shapes below are of

    T  tokens of the step                    D  width of the model
    S  rows that sample: the last token of   F  width of the feed-forward layer
       each needs logits                     V  tokens of the vocabulary
    H  heads of queries                      E  elements of a head
    G  heads of keys and values              B  blocks of the cache, of P tokens each
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import inflight


class Layer(NamedTuple):
    """Weights are [out, in], as the file has them; those with the same input are joined."""

    attn_norm: np.ndarray  # [D]
    qkv: np.ndarray  # [(H + 2 G) E, D]
    out: np.ndarray  # [D, H E]
    ffn_norm: np.ndarray  # [D]
    gate_up: np.ndarray  # [2 F, D]
    down: np.ndarray  # [D, F]


class Model:
    """A Llama from a GGUF file, its weights dequantised to f32, and its tokenizer."""

    def __init__(self, path: str) -> None:
        reader = gguf.GGUFReader(path)
        meta = {name: field.contents() for name, field in reader.fields.items()}
        known = {"general.architecture": "llama", "tokenizer.ggml.pre": "smollm"}
        for name, value in known.items():
            if meta.get(name) != value:
                raise ValueError(f"{path}: {name} is {meta.get(name)!r}, not {value!r}")
        self.tokenizer, self.eos = tokenizer_of(meta), meta.get("tokenizer.ggml.eos_token_id")
        self.context: int = meta["llama.context_length"]
        self.heads: int = meta["llama.attention.head_count"]
        self.kv_heads: int = meta["llama.attention.head_count_kv"]
        self.head_dim: int = meta["llama.embedding_length"] // self.heads
        self.rotary_dim: int = meta["llama.rope.dimension_count"]
        self.theta: float = meta["llama.rope.freq_base"]
        self.eps: float = meta["llama.attention.layer_norm_rms_epsilon"]

        weights = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        self.embedding = weights.pop("token_embd.weight")  # [V, D]
        self.unembedding = weights.pop("output.weight", self.embedding)  # [V, D]
        self.norm = weights.pop("output_norm.weight")  # [D]
        fields = ["attn_norm", "attn_q attn_k attn_v", "attn_output"]
        fields += ["ffn_norm", "ffn_gate ffn_up", "ffn_down"]

        def joined(layer: int, names: str) -> np.ndarray:
            return np.concatenate([weights.pop(f"blk.{layer}.{n}.weight") for n in names.split()])

        self.layers = [
            Layer(*(joined(i, names) for names in fields)) for i in range(meta["llama.block_count"])
        ]
        if weights:  # biases, frequencies of RoPE: without them the output would be wrong
            raise ValueError(f"{path}: nothing here uses {', '.join(weights)}")

    def forward(self, tokens: np.ndarray, sampling: np.ndarray, cache: PagedCache) -> np.ndarray:
        """Logits [S, V] at the places `sampling` [S] of a step's `tokens` [T]. Only attention knows
        which token is whose; to all else a step is T rows of a matrix."""
        x = self.embedding[tokens]  # [T, D]
        for i, layer in enumerate(self.layers):
            qkv = self.normed(x, layer.attn_norm) @ layer.qkv.T
            qkv = qkv.reshape(len(x), -1, self.head_dim)  # [T, H + 2 G, E]
            q, k, v = np.split(qkv, [self.heads, self.heads + self.kv_heads], axis=1)
            x += cache.attend(i, q, k, v).reshape(len(x), -1) @ layer.out.T
            gate_up = self.normed(x, layer.ffn_norm) @ layer.gate_up.T
            gate, up = np.split(gate_up, 2, axis=1)  # [T, F] each
            silu = gate * (0.5 + 0.5 * np.tanh(0.5 * gate))
            x += (silu * up) @ layer.down.T
        return self.normed(x[sampling], self.norm) @ self.unembedding.T

    def normed(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x * (weight / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps))


def tokenizer_of(meta: Dict[str, Any]) -> Tokenizer:
    """GPT-2's byte-level BPE, with each digit a token of its own."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return tokenizer


class Sizes(NamedTuple):
    """Blocks of the cache and tokens of each, and the most rows and tokens of a step."""

    num_blocks: int = 256
    block_size: int = 16
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 128


class PagedCache:
    """Keys and values of all layers in blocks, and attention over them."""

    def __init__(self, model: Model, sizes: Sizes) -> None:
        self.num_blocks, block_size, rows, tokens = sizes
        shape = (self.num_blocks, block_size, model.kv_heads, model.head_dim)  # [B, P, G, E]
        pool = np.zeros((len(model.layers), 2, *shape), np.float32)
        self.layers = [inflight.KVCache(k, v) for k, v in pool]
        longest = min(model.context, self.num_blocks * block_size)
        self.cos_sin = inflight.rope_table(longest, model.rotary_dim, model.theta)
        # Rows that share a prefix share blocks: together they may list more than there are.
        limits = inflight.StepLimits(rows, tokens, rows * self.num_blocks, longest)
        device = inflight.Device.cpu()
        heads = (model.heads, model.kv_heads, model.head_dim)
        self.attention = inflight.Attention(device, limits, *heads)
        self.buffer = inflight.StepBuffer(device, limits, [self.attention])

    def begin(self, step: inflight.Step) -> None:
        """Once a step: takes its block tables, and divides its attention among threads."""
        self.attention.plan(step, self.num_blocks)
        self.buffer.upload(step)

    def attend(self, layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Once a layer: rotates q [T, H, E] and k [T, G, E] by their positions, writes k and v
        [T, G, E] to the slots of the step's tokens, and attends to all keys of each row."""
        rope = inflight.Rope(self.cos_sin, q, inflight.RopePairs.INTERLEAVED)
        inflight.append(self.buffer, k, v, self.layers[layer], rope)
        return self.attention.run(self.buffer, q, self.layers[layer])  # [T, H, E]


class Token(NamedTuple):
    """What a request got: a token, or none where it ended without (refused, cancelled)."""

    id: Optional[int]
    end: Optional[str]  # why it was the last
    step: int  # which step sampled it
    batch: int  # how many requests were in that step


class Engine:
    """The scheduler's loop: one thread calls `step`; any thread submits and cancels."""

    def __init__(self, model: Model, sizes: Sizes = Sizes(), **more: Any) -> None:
        self.model, self.cache = model, PagedCache(model, sizes)
        more = {"max_model_len": model.context, **sizes._asdict(), **more}
        self.scheduler = inflight.Scheduler(**more)
        self.submitter = self.scheduler.submitter()
        self.wake, self.ids = threading.Event(), itertools.count()
        self.scheduler.set_wake(self.wake.set)
        self.deliver: Dict[int, Callable[[Token], None]] = {}

    def submit(
        self, prompt: Sequence[int], max_tokens: int, deliver: Callable[[Token], None]
    ) -> int:
        """Queues a request; the engine's thread calls `deliver` with each of its tokens."""
        request = next(self.ids)
        self.deliver[request] = deliver
        try:
            given = inflight.Request(request, prompt, max_tokens, eos=self.model.eos)
            self.submitter.submit(given)
        except inflight.InflightError:
            del self.deliver[request]
            raise
        return request

    def cancel(self, request: int) -> None:
        self.submitter.cancel(request)

    def step(self) -> bool:
        """One iteration of continuous batching; False where there is nothing to run."""
        step = self.scheduler.schedule()  # here requests join, or give way to others
        batch = step.num_rows
        if batch == 0:
            step.abandon()
        else:
            self.cache.begin(step)
            logits = self.model.forward(step.tokens, step.logits_indices, self.cache)
            for output in step.commit(logits.argmax(axis=1)):  # and here they leave
                end = output.finish.name.lower() if output.finish else None
                self.give(output.request_id, Token(output.tokens[0], end, step.id, batch))
        for event in self.scheduler.events():
            if event.kind in (inflight.EventKind.REFUSED, inflight.EventKind.CANCELLED):
                self.give(event.request_id, Token(None, event.kind.name.lower(), step.id, batch))
        return batch > 0

    def give(self, request: int, token: Token) -> None:
        self.deliver[request](token)
        if token.end:
            del self.deliver[request]

    def run(self) -> None:
        """Steps for ever, asleep while there is nothing to run."""
        while True:
            self.wake.clear()
            if not self.step():
                self.wake.wait()


class Handler(BaseHTTPRequestHandler):
    """POST {"prompt": text, "max_tokens": n}: the answer is one server-sent event a token. Each
    client has a thread, which waits for what the engine's thread puts into its queue."""

    def __init__(self, engine: Engine, *args: Any) -> None:
        self.engine = engine
        super().__init__(*args)

    def do_POST(self) -> None:
        tokenizer = self.engine.model.tokenizer
        tokens: SimpleQueue[Token] = SimpleQueue()
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt, max_tokens = tokenizer.encode(body["prompt"]).ids, body.get("max_tokens", 64)
            request = self.engine.submit(prompt, max_tokens, tokens.put)
        except (ValueError, KeyError, TypeError, inflight.InflightError) as error:
            later = isinstance(error, inflight.CapacityError)
            return self.send_error(503 if later else 400, str(error))
        text, token = decoders.DecodeStream(skip_special_tokens=True), None
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            while token is None or token.end is None:
                token = tokens.get()
                piece = None if token.id is None else text.step(tokenizer, token.id)
                event = json.dumps({"text": piece or "", **token._asdict()})
                self.wfile.write(f"data: {event}\n\n".encode())
        except ConnectionError:  # the client has gone: its blocks are for others
            self.engine.cancel(request)


def generate(engine: Engine, prompts: Sequence[str], max_tokens: int) -> None:
    """Prompts with what follows them. A terminal shows the ends of all as they grow."""
    tokenizer, texts, counts = engine.model.tokenizer, list(prompts), [0] * len(prompts)
    streams = [decoders.DecodeStream(skip_special_tokens=True) for _ in prompts]

    def take(i: int, token: Token) -> None:
        texts[i] += streams[i].step(tokenizer, token.id) or ""
        counts[i] += 1

    for i, prompt in enumerate(prompts):
        engine.submit(tokenizer.encode(prompt).ids, max_tokens, partial(take, i))
    columns, lines = shutil.get_terminal_size()
    live = sys.stdout.isatty() and len(texts) < lines
    begin, steps = time.perf_counter(), 0
    while engine.step():
        steps += 1
        if live:  # clear each line, write it; then back to the first
            print(*("\x1b[K" + repr(text)[1:-1][1 - columns :] for text in texts), sep="\n")
            print(f"\x1b[{len(texts)}F", end="", flush=True)
    seconds, total = time.perf_counter() - begin, sum(counts)
    print("\x1b[J" if live else "", end="")
    print(*texts, sep="\n----\n")
    print(f"\n{total} tokens in {steps} steps, {seconds:.1f} s: {total / seconds:.1f} tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a GGUF file; scripts/fetch-model gets one")
    parser.add_argument("prompts", nargs="*", metavar="prompt")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--serve", type=int, metavar="PORT", help="on 127.0.0.1, until interrupted")
    args = parser.parse_args()
    if not args.prompts and args.serve is None:
        parser.error("give prompts, or a port to serve at")
    engine = Engine(Model(args.model))
    if args.prompts:
        generate(engine, args.prompts, args.max_tokens)
    if args.serve is not None:
        server = ThreadingHTTPServer(("127.0.0.1", args.serve), partial(Handler, engine))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        engine.run()


if __name__ == "__main__":
    main()
