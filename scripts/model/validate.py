"""Other kernels, compiled by the same nvcc from sources outside of the tree, against what is published
of them."""

import heapq
from pathlib import Path

from . import chips, path as paths, sass, toolkit
from .kernels import Model

# The kernel alone, without its launcher, which needs PyTorch's headers.
FA2 = """
#include <ATen/cuda/PhiloxCudaState.h>
#include "flash.h"
#include "flash_fwd_kernel.h"
using namespace FLASH_NAMESPACE;
using Traits = Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutlass::bfloat16_t>;
extern "C" __global__ void __launch_bounds__(128)
fa2_forward(__grid_constant__ const Flash_fwd_params params) {
    compute_attn<Traits, false, true, false, false, true, true, false, false>(params);
}
"""
# Dropout is off; its types still have to exist.
STUBS = {
    "ATen/cuda/PhiloxCudaState.h": """#pragma once
#include <cstdint>
namespace at { struct PhiloxCudaState { uint64_t seed = 0, offset = 0; }; }
""",
    "ATen/cuda/detail/UnpackRaw.cuh": """#pragma once
#include <tuple>
#include "../PhiloxCudaState.h"
namespace at::cuda::philox {
__host__ __device__ inline std::tuple<uint64_t, uint64_t> unpack(PhiloxCudaState s) {
    return {s.seed, s.offset};
}
}
""",
}
FA2_SHARED = (128 + 2 * 64) * 128 * 2
ROWS, KEYS = 128, 64
# TFLOP/s of the forward pass, head dimension 128, 16k tokens, 16 heads: the range that is quoted for A100,
# whatever the length, and a transcription of the charts of FlashAttention-3's paper (H100 SXM5, f16).
PUBLISHED = (
    ("a100-80g", "causal", 2048, 200, 225),
    ("a100-80g", "causal", 16384, 200, 225),
    ("h100", "full", 16384, 370, 370),
    ("h100", "causal", 2048, 298, 298),
    ("h100", "causal", 4096, 319, 319),
    ("h100", "causal", 8192, 333, 333),
    ("h100", "causal", 16384, 335, 335),
)
# Assumed: queries and the first keys arrive; the output leaves.
BLOCK_EDGES = 2.5  # latencies of memory
MASKED_COST = 1.3
WANTED_ERROR = 0.07


def schedule(turns: list[float], sms: int, speeds: list[float]) -> float:
    """When the last of blocks ends that start in order, each as soon as a multiprocessor has room.
    `speeds[n - 1]`: turns a cycle of each of n blocks on a multiprocessor."""
    residents: list[list[float]] = [[] for _ in range(sms)]  # turns that are left
    since = [0.0] * sms
    version = [0] * sms
    events: list[tuple[float, int, int]] = []
    waiting = iter(turns)

    def plan(sm: int, now: float) -> None:
        version[sm] += 1
        since[sm] = now
        if residents[sm]:
            end = now + min(residents[sm]) / speeds[len(residents[sm]) - 1]
            heapq.heappush(events, (end, sm, version[sm]))

    for _ in range(len(speeds)):
        for sm in range(sms):
            if (block := next(waiting, None)) is not None:
                residents[sm].append(block)
    for sm in range(sms):
        plan(sm, 0.0)
    now = 0.0
    while events:
        now, sm, planned = heapq.heappop(events)
        if planned != version[sm]:
            continue
        done = (now - since[sm]) * speeds[len(residents[sm]) - 1]
        residents[sm] = [x - done for x in residents[sm] if x - done > 1e-6]
        while len(residents[sm]) < len(speeds) and (block := next(waiting, None)) is not None:
            residents[sm].append(block)
        plan(sm, now)
    return now


def launch_tflops(model: Model, cycles: list[float], causal: bool, length: int) -> float:
    """16k tokens and 16 heads: a block for each 128 queries of a head. `cycles`: of a turn, by the
    blocks of a multiprocessor."""
    batch_heads = 16384 // length * 16
    edge = BLOCK_EDGES * model.chip.memory_latency / cycles[-1]
    turns = []
    for _ in range(batch_heads):
        for i in range(length // ROWS):
            masked = 2 * (MASKED_COST - 1) if causal else 0
            turns.append(((i + 1) * ROWS if causal else length) / KEYS + masked + edge)
    end = schedule(turns, model.chip.sms, [1 / c for c in cycles])
    seconds = end / model.chip.clock_ghz / 1e9 + model.chip.launch_us / 1e6
    operations = 4.0 * 128 * batch_heads * length * length * (0.5 if causal else 1)
    return operations / seconds / 1e12


def fa2_model(chip: chips.Chip, sources: Path, cutlass: Path) -> Model:
    work = toolkit.TARGET / "peers"
    cubin = work / f"fa2.sm_{chip.sass}.cubin"
    if not cubin.is_file():
        for name, text in STUBS.items():
            stub = work / "stubs" / name
            stub.parent.mkdir(parents=True, exist_ok=True)
            stub.write_text(text, encoding="utf-8")
        source = work / "fa2.cu"
        source.write_text(FA2, encoding="utf-8")
        folders = (work / "stubs", sources / "csrc/flash_attn/src", cutlass / "include")
        flags = ("--expt-relaxed-constexpr", "--use_fast_math", *(f"-I{x}" for x in folders))
        toolkit.compile_cubin(source, chip.sass, cubin, flags)
    kernel = sass.disassemble(toolkit.nvdisasm(), cubin)["fa2_forward"]
    path = paths.common_path(kernel, paths.main_loop(kernel))
    return Model(chip, kernel.registers, 128, FA2_SHARED, path)


def flash_attention_2(sources: Path, cutlass: Path) -> int:
    """Prints predictions beside published figures. The interval is from barriers in lockstep to none,
    the middle has the mean of both times."""
    all_chips = chips.read()
    models = {name: fa2_model(all_chips[name], sources, cutlass) for name in ("a100-80g", "h100")}
    print("FlashAttention-2, forward, head dimension 128, bf16: predicted TFLOP/s beside published")
    errors = []
    for name, kind, length, low, high in PUBLISHED:
        model = models[name]
        slow, fast = (
            [model.run(n + 1, barriers).cycles for n in range(model.blocks)] for barriers in (True, False)
        )
        mean = [(a + b) / 2 for a, b in zip(slow, fast)]
        worst, best, middle = (
            launch_tflops(model, c, kind == "causal", length) for c in (slow, fast, mean)
        )
        published = (low + high) / 2
        errors.append(middle / published - 1)
        inside = "inside" if worst <= high and low <= best else "OUTSIDE"
        print(f"{name:9} {kind:6} {length:6}: {middle:4.0f} ({worst:.0f} to {best:.0f}), published "
              f"{low}{'' if low == high else f' to {high}'}: {errors[-1]:+.1%}, {inside}")
    worst_error = max(errors, key=abs)
    print(f"largest error of the middle: {worst_error:+.1%}")
    if abs(worst_error) > WANTED_ERROR:
        print(f"more than {WANTED_ERROR:.0%}: use predictions as ratios of two kernels on one chip, not as TFLOP/s")
    return 0
