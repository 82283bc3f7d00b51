"""llm.py: a tiny model of random weights against a dense forward in binary64, and SmolLM2 against
greedy tokens that a dense forward in f32 gave (../shared/oracle), alone and in company."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="llm.py reads models by pip's gguf")
tokenizers = pytest.importorskip("tokenizers", reason="llm.py reads text by pip's tokenizers")

from inflight import ArgumentError, RowFlag  # noqa: E402

import llm  # noqa: E402
import reference  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[3]
ORACLE = REPOSITORY.parent / "shared" / "oracle" / "smollm2_greedy.json"
MODEL = Path(
    os.environ.get("INFLIGHT_MODEL")
    or REPOSITORY / "target" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
)

LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN, THETA = 2, 4, 2, 16, 96, 500.0
WIDTH = HEADS * HEAD_DIM
EOS = "<|end|>"


def write_tiny(path, **extra):
    """A model like SmolLM2 but for its size, with weights of every type that llm.py may meet."""
    rng = np.random.default_rng(7)
    bytes_ = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [EOS, *bytes_, "Ġa", "bc", "Ġabc", "12"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control if token == EOS else normal for token in tokens])
    writer.add_token_merges(["Ġ a", "b c", "Ġa bc", "1 2"])
    writer.add_eos_token_id(0)

    def matrix(name, rows, columns, kind=gguf.GGMLQuantizationType.Q4_1):
        weights = rng.standard_normal((rows, columns), np.float32) * columns**-0.5
        writer.add_tensor(f"{name}.weight", gguf.quantize(weights, kind), raw_dtype=kind)

    def norm(name):
        writer.add_tensor(f"{name}.weight", 1 + 0.1 * rng.standard_normal(WIDTH).astype(np.float32))

    matrix("token_embd", len(tokens), WIDTH, gguf.GGMLQuantizationType.Q8_0)
    for i in range(LAYERS):
        norm(f"blk.{i}.attn_norm")
        matrix(f"blk.{i}.attn_q", WIDTH, WIDTH)
        matrix(f"blk.{i}.attn_k", KV_HEADS * HEAD_DIM, WIDTH)
        matrix(f"blk.{i}.attn_v", KV_HEADS * HEAD_DIM, WIDTH)
        matrix(f"blk.{i}.attn_output", WIDTH, WIDTH)
        norm(f"blk.{i}.ffn_norm")
        matrix(f"blk.{i}.ffn_gate", FFN, WIDTH, gguf.GGMLQuantizationType.F16)
        matrix(f"blk.{i}.ffn_up", FFN, WIDTH)
        matrix(f"blk.{i}.ffn_down", WIDTH, FFN)
    norm("output_norm")
    for name, array in extra.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm") / "tiny.gguf"
    write_tiny(path)
    return path


def rotated(x):
    """RoPE of pairs (2i, 2i + 1), `x` [tokens, heads, head_dim]."""
    turns = THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    pairs = pairs * np.exp(1j * np.arange(len(x))[:, None, None] * turns)
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


class Dense:
    """The same model without cache or batch: all of one request's tokens, in binary64."""

    def __init__(self, path):
        tensors = gguf.GGUFReader(path).tensors
        self.weights = {
            t.name[: -len(".weight")]: gguf.dequantize(t.data, t.tensor_type).astype(np.float64)
            for t in tensors
        }

    def norm(self, name, x):
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * self.weights[name]

    def logits(self, tokens):
        x = self.weights["token_embd"][tokens]
        for i in range(LAYERS):
            layer = {
                name.split(".")[2]: weight
                for name, weight in self.weights.items()
                if name.startswith(f"blk.{i}.")
            }
            h = self.norm(f"blk.{i}.attn_norm", x)
            q = (h @ layer["attn_q"].T).reshape(len(x), HEADS, HEAD_DIM)
            k = (h @ layer["attn_k"].T).reshape(len(x), KV_HEADS, HEAD_DIM)
            v = (h @ layer["attn_v"].T).reshape(len(x), KV_HEADS, HEAD_DIM)
            attended, _ = reference.attention(rotated(q), rotated(k), v)
            x = x + attended.reshape(len(x), WIDTH) @ layer["attn_output"].T
            h = self.norm(f"blk.{i}.ffn_norm", x)
            gate = h @ layer["ffn_gate"].T
            x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["ffn_up"].T)) @ layer["ffn_down"].T
        return self.norm("output_norm", x[-1:])[0] @ self.weights["token_embd"].T


class Watched(llm.Engine):
    """An engine that keeps each request's tokens, and how its prompt's chunks were cut."""

    def __init__(self, model, num_blocks, rows, tokens, block_size=16, **config):
        super().__init__(model, llm.Sizes(num_blocks, block_size, rows, tokens), **config)
        self.outputs, self.ends, self.chunks, self.sampling = {}, {}, 0, []
        begin = self.cache.begin

        def watched(step):
            samples = (step.rows["flags"] & RowFlag.SAMPLES) != 0
            self.chunks += int((~samples).sum())
            self.sampling = step.rows["request_id"][samples].tolist()
            begin(step)

        self.cache.begin = watched

    def ask(self, prompt, max_tokens):
        output, end = [], []

        def take(token):
            output.append(token.id)
            end.append(token.end)

        request = self.submit(prompt, max_tokens, take)
        self.outputs[request], self.ends[request] = output, end
        return request

    def drain(self):
        while self.step():
            self.scheduler.verify()


def test_logits_are_those_of_a_dense_forward(tiny):
    """Whatever the batch: chunks of prompts, prefixes from the cache, and preemption."""
    model, dense = llm.Model(str(tiny)), Dense(tiny)
    model.eos = None
    engine = Watched(model, num_blocks=20, block_size=4, rows=4, tokens=16)
    rng = np.random.default_rng(11)
    shared = rng.integers(1, 200, size=9).tolist()
    prompts = [shared + rng.integers(1, 200, size=n).tolist() for n in (1, 30, 3, 14, 22, 8)]
    prompts.append(prompts[1])
    checked = 0
    forward = model.forward

    def checking(*args):
        nonlocal checked
        logits = forward(*args)
        for request, row in zip(engine.sampling, logits):
            expected = dense.logits(prompts[request] + engine.outputs[request])
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-4)
            checked += 1
        return logits

    model.forward = checking
    for i, prompt in enumerate(prompts):  # one comes at every third step
        assert engine.ask(prompt, 24) == i
        for _ in range(3):
            engine.step()
    engine.drain()
    assert checked == 24 * len(prompts) == sum(map(len, engine.outputs.values()))
    assert all(end[-1] == "length" and not any(end[:-1]) for end in engine.ends.values())
    stats = engine.scheduler.stats()
    assert engine.chunks and stats.preemptions and stats.prefix_hit_tokens
    assert stats.num_free_blocks == 19 and not engine.deliver


def test_text_is_cut_as_the_file_says(tiny):
    model = llm.Model(str(tiny))
    encoded = model.tokenizer.encode("a abc1234<|end|>é")
    assert encoded.tokens == ["a", "Ġabc", "1", "2", "3", "4", EOS, "Ã", "©"]
    assert encoded.ids[6] == model.eos == 0
    assert model.tokenizer.decode(encoded.ids) == "a abc1234é"


def test_other_models_are_refused(tmp_path):
    write_tiny(tmp_path / "biased.gguf", **{"blk.0.attn_q.bias": np.zeros(WIDTH, np.float32)})
    with pytest.raises(ValueError, match="attn_q.bias"):
        llm.Model(str(tmp_path / "biased.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="general.architecture"):
        llm.Model(str(tmp_path / "other.gguf"))


def test_a_request_may_be_cancelled_and_refused(tiny):
    engine = Watched(llm.Model(str(tiny)), num_blocks=9, rows=2, tokens=16)
    engine.model.eos = None
    first, second = engine.ask([1, 2, 3], 50), engine.ask([4, 5], 2)
    engine.step()
    engine.cancel(first)
    engine.drain()
    assert engine.outputs[first][1:] == [None] and engine.ends[first] == [None, "cancelled"]
    assert engine.ends[second] == [None, "length"]
    with pytest.raises(ArgumentError):
        engine.ask([1] * 500, 1)
    assert not engine.deliver and engine.scheduler.stats().num_free_blocks == 8


class Client(threading.Thread):
    """Asks a server, and keeps the events of its answer."""

    def __init__(self, url, body):
        super().__init__(daemon=True)
        self.url, self.body, self.events = url, json.dumps(body).encode(), []
        self.start()

    def run(self):
        with urlopen(self.url, self.body, timeout=60) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    self.events.append(json.loads(line[len(b"data: ") :]))


def wait_until(condition):
    """What other threads do takes what it takes; a minute is never."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come")


def test_requests_join_and_leave_a_running_batch(tiny):
    model = llm.Model(str(tiny))
    model.eos = None
    engine = llm.Engine(model)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(llm.Handler, engine))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        for prompt, max_tokens in (("", 1), (5, 1), ("a", 0), ("a", "many"), ("a" * 200, 1)):
            body = json.dumps({"prompt": prompt, "max_tokens": max_tokens}).encode()
            with pytest.raises(HTTPError) as refused:
                urlopen(url, body, timeout=60)
            assert refused.value.code == 400
        with pytest.raises(HTTPError):
            urlopen(url, b"[]", timeout=60)
        long = Client(url, {"prompt": "a abc", "max_tokens": 40})
        wait_until(lambda: engine.wake.is_set())
        for _ in range(5):
            assert engine.step()
        engine.wake.clear()
        short = Client(url, {"prompt": "bc 12", "max_tokens": 3})
        wait_until(lambda: engine.wake.is_set())
        while engine.step():
            pass
        long.join(60)
        short.join(60)
    finally:
        server.shutdown()
        server.server_close()
    assert [len(long.events), len(short.events)] == [40, 3]
    assert [event["batch"] for event in long.events] == [1] * 5 + [2] * 3 + [1] * 32
    assert [event["step"] for event in short.events] == [e["step"] for e in long.events[5:8]]
    assert short.events[-1]["end"] == long.events[-1]["end"] == "length"
    text = model.tokenizer.decode([event["id"] for event in short.events])
    assert text.startswith("".join(event["text"] for event in short.events))


def test_a_client_that_leaves_frees_its_blocks(tiny):
    model = llm.Model(str(tiny))
    model.eos = None
    engine = llm.Engine(model)

    class Gone:
        def write(self, _):
            raise BrokenPipeError

    handler = llm.Handler.__new__(llm.Handler)
    body = json.dumps({"prompt": "abc", "max_tokens": 100}).encode()
    handler.engine, handler.headers = engine, {"Content-Length": len(body)}
    handler.rfile, handler.wfile = io.BytesIO(body), Gone()
    handler.send_response = handler.send_header = lambda *_: None
    handler.end_headers = lambda: None
    serving = threading.Thread(target=handler.do_POST, daemon=True)
    serving.start()
    wait_until(lambda: engine.wake.is_set())
    engine.step()
    serving.join(60)
    assert not engine.step() and not engine.deliver
    stats = engine.scheduler.stats()
    assert stats.cancelled == 1 and stats.num_free_blocks == 255


def test_the_program(tiny):
    command = [sys.executable, llm.__file__, str(tiny), "abc", "12 a", "--max-tokens", "5"]
    ran = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=300)
    assert ran.stdout.startswith("abc") and "\n----\n12 a" in ran.stdout
    assert "tokens/s" in ran.stdout.splitlines()[-1]


# SmolLM2-135M-Instruct, greedy: the smallest distance to a second choice is 0.003, thirty times
# what rounding in another order changes.


@pytest.fixture(scope="module")
def smollm():
    if not ORACLE.exists():
        pytest.skip(f"{ORACLE.name} is not in ../shared/oracle")
    if not MODEL.exists():
        pytest.skip("the model is not here: scripts/fetch-model gets it")
    model = llm.Model(str(MODEL))
    model.eos = None  # the oracle goes on after it
    return model, json.loads(ORACLE.read_text(encoding="utf-8"))["prompts"]


def expected(cases):
    return [case["numpy_f32"]["output_ids"] for case in cases]


def test_smollm_tokenizer(smollm):
    model, cases = smollm
    assert len(cases) == 15
    for case in cases:
        assert model.tokenizer.encode(case["prompt"]).ids == case["prompt_ids"]
        text = model.tokenizer.decode(case["numpy_f32"]["output_ids"], skip_special_tokens=False)
        assert text.strip() == case["numpy_f32"]["text"].strip()


def test_smollm_one_at_a_time(smollm):
    model, cases = smollm
    engine = Watched(model, num_blocks=16, rows=1, tokens=128, prefix_cache=False)
    for case in cases:
        engine.ask(case["prompt_ids"], 32)
        engine.drain()
    assert list(engine.outputs.values()) == expected(cases)


def test_smollm_all_together(smollm):
    """In fewer tokens a step than their prompts have, and fewer blocks than they need."""
    model, cases = smollm
    engine = Watched(model, num_blocks=48, rows=15, tokens=48, prefix_cache=False)
    for case in cases:
        engine.ask(case["prompt_ids"], 32)
    engine.drain()
    assert list(engine.outputs.values()) == expected(cases)
    assert engine.chunks and engine.scheduler.stats().preemptions


def test_smollm_prompts_from_the_prefix_cache(smollm):
    model, cases = smollm
    engine = Watched(model, num_blocks=200, rows=15, tokens=128)
    for case in cases + cases:  # the second time while the first still runs, or has ended
        engine.ask(case["prompt_ids"], 32)
    engine.drain()
    assert list(engine.outputs.values()) == expected(cases + cases)
    whole_blocks = sum((len(case["prompt_ids"]) - 1) // 16 * 16 for case in cases)
    assert engine.scheduler.stats().prefix_hit_tokens >= whole_blocks
