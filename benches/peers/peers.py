#!/usr/bin/env python3
"""The same batches through this library, torch and FlashInfer, on one GPU: one table with ratios.

    benches/peers/peers.py --loader libinflight_loader.so [--json FILE] [--only PART] [--rounds N]
    benches/peers/peers.py --loader libinflight_loader.so --smoke     one small batch, no torch

The loader is `cargo build --release -p inflight-loader --features cuda`. All read the same numbers:
this library and FlashInfer in place, from a paged cache in blocks of 16; torch, which is given no
block tables, from a contiguous copy made beforehand. A sample is a call over enough copies of the
cache that none finds its keys in the L2 cache, between two events; contenders take turns, and
figures are medians over the rounds. A peer that is not installed has a line, and so has what a peer refuses.
"""

import argparse
import ctypes
import inspect
import json
import math
import os
import random
import struct
import sys

BLOCK = 16
# Outputs are means of numbers of about 1, in bf16.
BOUND = 0.03


class Batch:
    """Queries and keys of each row, and their blocks in random order."""

    def __init__(self, kind, what, rows, heads, dim=128, causal=True):
        self.name = f"{kind} {what} {heads[0]}/{heads[1]} d{dim}" + ("" if causal else " full")
        self.kind, self.rows, self.heads, self.dim, self.causal = kind, rows, heads, dim, causal
        self.tokens = sum(q for q, _ in rows)
        blocks = [-(-kv // BLOCK) for _, kv in rows]
        self.table = list(range(1, sum(blocks) + 1))
        random.Random(3).shuffle(self.table)
        self.num_blocks = len(self.table) + 1
        self.qo, self.kv, self.keys = [0], [0], [0]
        for (q, kv), count in zip(rows, blocks):
            self.qo.append(self.qo[-1] + q)
            self.kv.append(self.kv[-1] + count)
            self.keys.append(self.keys[-1] + kv)
        self.last = [(kv - 1) % BLOCK + 1 for _, kv in rows]
        self.even = len(set(rows)) == 1

    def cache_bytes(self):
        return 2 * self.num_blocks * BLOCK * self.heads[1] * self.dim * 2


def longtail(batch, mean):
    weights = [1.0 if row % 8 == 0 else 0.09 for row in range(batch)]
    return [(1, max(1, int(w * batch * mean / sum(weights)))) for w in weights]


def batches():
    made = []
    for heads in [(32, 8), (64, 8), (8, 1), (32, 32)]:
        for rows in [1, 16, 64, 128] if heads == (32, 8) else [16, 128]:
            for keys in [1 << 10, 4 << 10, 16 << 10] if heads == (32, 8) else [4 << 10]:
                made.append(Batch("decode", f"b{rows} kv{keys}", [(1, keys)] * rows, heads))
    for rows in (32, 128):
        made.append(Batch("decode", f"b{rows} kv4096 longtail", longtail(rows, 4 << 10), (32, 8)))
    for causal in (True, False):
        for length in [2 << 10, 4 << 10, 8 << 10, 16 << 10]:
            made.append(Batch("prefill", f"b1 s{length}", [(length, length)], (64, 8), causal=causal))
    for dim in (64, 128, 256):
        for rows in (8, 1):
            length = (16 << 10) // rows
            made.append(Batch("prefill", f"b{rows} s{length}", [(length, length)] * rows, (2048 // dim,) * 2, dim))
    made.append(Batch("mixed", "q512s2k_31q1s1k", [(512, 2048)] + [(1, 1024)] * 31, (32, 8)))
    made.append(Batch("mixed", "2q2k_32q1s1k", [(2048, 2048)] * 2 + [(1, 1024)] * 32, (32, 8)))
    return made


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in (
        "device q_heads kv_heads head_dim block_size num_blocks causal max_rows max_tokens max_table "
        "max_kv_len").split()]


class Inflight:
    """This library, planned for one batch."""

    def __init__(self, path, batch, stream):
        self.library = library = ctypes.CDLL(path)
        library.inflight_loader_error.restype = ctypes.c_char_p
        library.inflight_loader_create.restype = ctypes.c_void_p
        library.inflight_loader_destroy.argtypes = [ctypes.c_void_p]
        library.inflight_loader_plan.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32] + [ctypes.c_void_p] * 4
        library.inflight_loader_run.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint64] * 4
        longest = max(kv for _, kv in batch.rows)
        sizes = Sizes(0, *batch.heads, batch.dim, BLOCK, batch.num_blocks, batch.causal, len(batch.rows),
                      batch.tokens, len(batch.table), longest)
        self.stream, self.handle = stream, library.inflight_loader_create(ctypes.byref(sizes))
        if not self.handle:
            raise RuntimeError(library.inflight_loader_error().decode())
        arrays = [(ctypes.c_uint32 * len(a))(*a) for a in (batch.qo, batch.kv, batch.table, batch.last)]
        self.done(library.inflight_loader_plan(self.handle, stream, len(batch.rows), *arrays))

    def done(self, status):
        if status:
            raise RuntimeError(self.library.inflight_loader_error().decode())

    def run(self, q, k, v, o):
        self.done(self.library.inflight_loader_run(self.handle, self.stream, q, k, v, o))

    def close(self):
        self.library.inflight_loader_destroy(self.handle)


# ---- one small batch, without torch

class Driver:
    """Memory by the driver itself."""

    def __init__(self):
        # In the library's order: both find the same driver.
        try:
            self.cuda = ctypes.CDLL("libcuda.so")
        except OSError:
            self.cuda = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def call(self, name, *args):
        status = getattr(self.cuda, name)(*args)
        if status:
            raise RuntimeError(f"{name}: CUDA error {status}")

    def upload(self, data):
        at = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(max(len(data), 16)))
        self.call("cuMemcpyHtoDAsync_v2", at, data, ctypes.c_size_t(len(data)), None)
        self.call("cuStreamSynchronize", None)
        return at.value

    def download(self, at, size):
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoHAsync_v2", data, ctypes.c_uint64(at), ctypes.c_size_t(size), None)
        self.call("cuStreamSynchronize", None)
        return data.raw


def from_bf16(data):
    return [struct.unpack("<f", b"\0\0" + data[i:i + 2])[0] for i in range(0, len(data), 2)]


def smoke(loader):
    """The largest difference to attention written out."""
    driver = Driver()
    batch = Batch("mixed", "smoke", [(1, 37), (5, 21), (1, 16)], (4, 2), 64)
    (heads, kv_heads), dim = batch.heads, batch.dim
    draw = random.Random(1)
    # The upper halves of floats from -1 to 1.
    numbers = lambda count: b"".join(struct.pack("<f", draw.uniform(-1, 1))[2:] for _ in range(count))
    cache = batch.num_blocks * BLOCK * kv_heads * dim
    bytes_of = [numbers(batch.tokens * heads * dim), numbers(cache), numbers(cache), b"\xff" * (2 * batch.tokens * heads * dim)]
    at = [driver.upload(data) for data in bytes_of]
    attention = Inflight(loader, batch, None)
    attention.run(*at)
    found = from_bf16(driver.download(at[3], len(bytes_of[3])))
    attention.close()
    q, k, v = (from_bf16(data) for data in bytes_of[:3])
    worst = 0.0
    for row, (q_len, kv_len) in enumerate(batch.rows):
        table = batch.table[batch.kv[row]:batch.kv[row + 1]]
        for i in range(q_len):
            token = batch.qo[row] + i
            for head in range(heads):
                query = q[(token * heads + head) * dim:][:dim]
                starts = [((table[j // BLOCK] * BLOCK + j % BLOCK) * kv_heads + head * kv_heads // heads) * dim
                          for j in range(kv_len - q_len + i + 1)]
                logits = [sum(a * b for a, b in zip(query, k[s:s + dim])) / math.sqrt(dim) for s in starts]
                weights = [math.exp(x - max(logits)) for x in logits]
                for d in range(dim):
                    want = sum(w * v[s + d] for w, s in zip(weights, starts)) / sum(weights)
                    error = abs(found[(token * heads + head) * dim + d] - want)
                    worst = max(worst, error if error == error else math.inf)
    return worst


# ---- contenders: functions of one copy of the cache, each giving an output of [tokens, heads, dim]

class World:
    """A batch's tensors: as many copies of the cache as fill the L2 cache four times."""

    def __init__(self, torch, batch):
        self.torch, self.batch = torch, batch
        l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        copies = max(1, min(32, -(-4 * l2 // batch.cache_bytes())))
        heads, kv_heads = batch.heads
        new = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
        self.q = new(batch.tokens, heads, batch.dim)
        self.caches = [(new(batch.num_blocks, BLOCK, kv_heads, batch.dim), new(batch.num_blocks, BLOCK, kv_heads, batch.dim))
                       for _ in range(copies)]
        self.ints = lambda numbers: torch.tensor(numbers, device="cuda", dtype=torch.int32)
        self.without_blocks = None

    def contiguous(self):
        """Each copy's K and V without blocks: [keys, kv_heads, dim]."""
        if self.without_blocks:
            return self.without_blocks
        batch, slots = self.batch, []
        for row, (_, kv) in enumerate(batch.rows):
            table = batch.table[batch.kv[row]:batch.kv[row + 1]]
            slots.extend(table[j // BLOCK] * BLOCK + j % BLOCK for j in range(kv))
        index = self.torch.tensor(slots, device="cuda")
        flat = lambda x: x.flatten(0, 1).index_select(0, index)
        self.without_blocks = [(flat(k), flat(v)) for k, v in self.caches]
        return self.without_blocks


def inflight(world, loader):
    torch, batch = world.torch, world.batch
    attention = Inflight(loader, batch, torch.cuda.current_stream().cuda_stream)
    out = torch.empty_like(world.q)
    q, o = world.q.data_ptr(), out.data_ptr()

    def run(copy):
        k, v = world.caches[copy]
        attention.run(q, k.data_ptr(), v.data_ptr(), o)
        return out
    # It goes with the function.
    run.close = attention.close
    return run


def sdpa(backend):
    def make(world, _):
        torch, batch = world.torch, world.batch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        q_len, kv_len = batch.rows[0]
        if not batch.even or q_len not in (1, kv_len):
            return None
        rows = len(batch.rows)
        q = world.q.view(rows, q_len, *world.q.shape[1:]).transpose(1, 2)
        caches = [tuple(x.view(rows, kv_len, *x.shape[1:]).transpose(1, 2) for x in kv) for kv in world.contiguous()]
        causal, gqa = batch.causal and q_len > 1, batch.heads[0] != batch.heads[1]
        which = getattr(SDPBackend, backend)

        def run(copy):
            k, v = caches[copy]
            with sdpa_kernel(which):
                o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)
            return o.transpose(1, 2).flatten(0, 1)
        return run
    return make


def varlen(world, _):
    batch = world.batch
    from torch.nn.attention.varlen import varlen_attn
    known = inspect.signature(varlen_attn).parameters
    options = {}
    if batch.causal:
        options |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known and batch.heads[0] != batch.heads[1]:
        options["enable_gqa"] = True
    qo, keys, caches = world.ints(batch.qo), world.ints(batch.keys), world.contiguous()
    longest = [max(row[side] for row in batch.rows) for side in (0, 1)]
    return lambda copy: varlen_attn(world.q, *caches[copy], qo, keys, *longest, **options)


def flashinfer(world, _):
    torch, batch = world.torch, world.batch
    import flashinfer
    space = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    tables = [world.ints(batch.kv), world.ints(batch.table), world.ints(batch.last)]
    sizes = (*batch.heads, batch.dim, BLOCK)
    if batch.kind == "decode":
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(space, "NHD", use_tensor_cores=True)
        wrapper.plan(*tables, *sizes, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(space, "NHD")
        wrapper.plan(world.ints(batch.qo), *tables, *sizes, causal=batch.causal, q_data_type=torch.bfloat16)
    return lambda copy: wrapper.run(world.q, world.caches[copy])


CONTENDERS = {"inflight": inflight, "torch SDPA flash": sdpa("FLASH_ATTENTION"), "torch SDPA cuDNN": sdpa("CUDNN_ATTENTION"),
              "torch varlen": varlen, "FlashInfer": flashinfer}


class Timer:
    def __init__(self, torch):
        self.torch = torch
        l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        self.flush = torch.ones(l2, device="cuda")
        self.start, self.stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, run, copies):
        """Microseconds of a call, from a cold L2 cache."""
        calls = max(2, copies)
        # The host queues all calls while the device sleeps, so that none waits for it.
        self.torch.cuda._sleep(4_000_000)
        self.flush.sum()
        self.start.record()
        for call in range(calls):
            run(call % copies)
        self.stop.record()
        self.stop.synchronize()
        return self.start.elapsed_time(self.stop) * 1e3 / calls


def compare(torch, timer, batch, options, notes):
    """The times of all, and how many times as long as this library's they are."""
    world = World(torch, batch)
    runs, outputs = {}, {}
    for name, make in CONTENDERS.items():
        try:
            run = make(world, options.loader)
            if run is None:
                continue
            outputs[name] = run(0).clone()
            torch.cuda.synchronize()
            runs[name] = run
        except ImportError as error:
            notes.setdefault(f"{name}: not here ({error})")
        except Exception as error:
            if "illegal" in str(error).lower():
                raise
            notes.setdefault(f"{name}: {batch.name}: {str(error).splitlines()[0] if str(error) else error!r}")
    samples, errors = {name: [] for name in runs}, {}
    for name in runs:
        if "inflight" in runs:
            errors[name] = (outputs[name].float() - outputs["inflight"].float()).abs().max().item()
            if not errors[name] < BOUND:
                notes.setdefault(f"{name}: {batch.name}: differs from inflight by {errors[name]}")
    for turn in range(options.rounds + 1):
        for name, run in runs.items():
            taken = timer(run, len(world.caches))
            if turn:
                samples[name].append(taken)
    spread = lambda s: {"median": s[len(s) // 2], "p10": s[round((len(s) - 1) * 0.1)], "p90": s[round((len(s) - 1) * 0.9)]}
    us = {name: spread(sorted(taken)) for name, taken in samples.items()}
    ours = us.get("inflight")
    ratios = {name: found["median"] / ours["median"] for name, found in us.items() if ours and name != "inflight"}
    for run in runs.values():
        getattr(run, "close", lambda: None)()
    return {"name": batch.name, "us": us, "ratios": ratios, "differences": errors}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loader", required=True, help="the library: libinflight_loader.so")
    parser.add_argument("--json", help="where the figures go as well")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--except", dest="excepted", action="append", default=[], metavar="NAME",
                        help="not this case; may be repeated")
    parser.add_argument("--rounds", type=int, default=11, help="samples of each, in turns (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="one small batch against plain Python: no torch, no timing")
    options = parser.parse_args()
    notes, rows = {}, []
    try:
        worst = smoke(options.loader)
    except OSError as error:
        print(f"nothing to compare: {error}")
        return 0
    record = {"contenders": list(CONTENDERS), "rows": rows, "notes": [], "smoke_error": worst}
    print(f"one small batch: at most {record['smoke_error']:.4f} from plain arithmetic")
    torch = None
    if not options.smoke:
        try:
            import torch
            if torch.cuda.is_available():
                record["torch"] = torch.__version__
            else:
                notes["torch: sees no GPU"] = None
                torch = None
        except ImportError as error:
            notes[f"torch: not here ({error})"] = None
    if torch:
        timer = Timer(torch)
        print(f"{'µs, × inflight':<44}" + "".join(f"{name:>24}" for name in CONTENDERS))
        for batch in batches():
            if options.only not in batch.name or batch.name in options.excepted:
                continue
            try:
                row = compare(torch, timer, batch, options, notes)
            except torch.cuda.OutOfMemoryError:
                notes[f"{batch.name}: does not fit memory"] = None
                continue
            finally:
                torch.cuda.empty_cache()
            rows.append(row)
            cells = [f"{row['us'][n]['median']:.1f}" + (f" ({row['ratios'][n]:.2f}×)" if n in row["ratios"] else "")
                     if n in row["us"] else "-" for n in CONTENDERS]
            print(f"{batch.name:<44}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
            if options.json:
                write(options.json, record, notes)
    for note in notes:
        print(note)
    if options.json:
        write(options.json, record, notes)
    wrong = record["smoke_error"] >= BOUND or any("differs from" in note for note in notes)
    return 1 if wrong else 0


def write(path, record, notes):
    record["notes"] = list(notes)
    # The old file or the new one, never a part of it.
    with open(f"{path}.new", "w") as file:
        json.dump(record, file, indent=1)
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    sys.exit(main())
