"""llama.cpp next to `llm bench`, on the same machine, one after the other, several times.

    pip install llama-cpp-python        # builds llama.cpp, some minutes
    python3 beside_llama_cpp.py MODEL.gguf --program ../../../target/release/llm

llama.cpp runs through its own API: prompts of all streams in batches of 512 tokens, then one token of
each stream a batch, as its `llama-batched-bench` does. Nothing is sampled there.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import time

import llama_cpp as lc


class Peer:
    """A llama.cpp context for a number of streams."""

    def __init__(self, path: str, streams: int, tokens: int, threads: int) -> None:
        params = lc.llama_model_default_params()
        self.model = lc.llama_load_model_from_file(path.encode(), params)
        context = lc.llama_context_default_params()
        context.n_ctx = streams * tokens + 64
        context.n_batch = context.n_ubatch = 512
        context.n_seq_max = streams
        context.n_threads = context.n_threads_batch = threads
        if hasattr(context, "kv_unified"):
            context.kv_unified = True
        self.context = lc.llama_new_context_with_model(self.model, context)
        self.batch = lc.llama_batch_init(512, 0, 1)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, stream, whether its logits are wanted)."""
        for start in range(0, len(rows), 512):
            part = rows[start : start + 512]
            self.batch.n_tokens = len(part)
            for i, (token, position, stream, wanted) in enumerate(part):
                self.batch.token[i] = token
                self.batch.pos[i] = position
                self.batch.n_seq_id[i] = 1
                self.batch.seq_id[i][0] = stream
                self.batch.logits[i] = wanted
            status = lc.llama_decode(self.context, self.batch)
            if status != 0:
                raise RuntimeError(f"llama_decode: {status}")

    def forget(self) -> None:
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def measure(self, streams: int, prompt: int, output: int) -> tuple[float, float]:
        """Tokens a second of prompts and of outputs."""
        self.forget()
        start = time.perf_counter()
        self.decode(
            [
                ((s * 7919 + at * 104729 + 13) % 49152, at, s, at == prompt - 1)
                for s in range(streams)
                for at in range(prompt)
            ]
        )
        middle = time.perf_counter()
        for at in range(prompt, prompt + output - 1):
            self.decode([((s * 31 + at) % 49152, at, s, True) for s in range(streams)])
        end = time.perf_counter()
        return streams * prompt / (middle - start), streams * (output - 1) / (end - middle)


def ours(program: str, path: str, streams: int, args: argparse.Namespace) -> tuple[float, float]:
    command = [program, "bench", "--model", path, "--streams", str(streams), "--runs", "1"]
    command += ["--prompt", str(args.prompt), "--output", str(args.output), *args.options]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _, prompts, outputs = out.splitlines()[-1].split()
    return float(prompts), float(outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--program", required=True)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="more options of `llm bench`, after --")
    args = parser.parse_args()
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    quiet = callback(lambda level, text, data: None)
    lc.llama_log_set(quiet, None)
    lc.llama_backend_init()
    threads = len(os.sched_getaffinity(0))
    print(f"prompts of {args.prompt}, outputs of {args.output} tokens, {threads} threads; tokens/s,")
    print(f"median of {args.rounds} rounds in turns; llama-cpp-python {lc.__version__}")
    print(f"{'':8}{'prompts':^30}{'outputs':^30}")
    print(f"{'streams':8}" + f"{'llama.cpp':>10}{'llm':>10}{'ratio':>10}" * 2)
    for streams in map(int, args.streams.split(",")):
        peer = Peer(args.model, streams, args.prompt + args.output, threads)
        peer.measure(streams, args.prompt, min(args.output, 8))
        theirs, own = [], []
        for _ in range(args.rounds):
            theirs.append(peer.measure(streams, args.prompt, args.output))
            own.append(ours(args.program, args.model, streams, args))
        line = f"{streams:<8}"
        for which in (0, 1):
            them = statistics.median(run[which] for run in theirs)
            us = statistics.median(run[which] for run in own)
            line += f"{them:10.1f}{us:10.1f}{us / them:10.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
