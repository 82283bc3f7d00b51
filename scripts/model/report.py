"""Tables: of the loops over keys, and of what docs/kernels.md has."""

from . import kernels, record, toolkit, validation
from .chips import Chip, load
from .timing import ops_of, play

SHOWN = ("decode_bf16_same_d64", "decode_bf16_same_d128", "decode_bf16_same_d256", "decode_bf16_e4m3_d128",
         "decode_f16_e4m3_d128", "prefill_bf16_same_d64", "prefill_bf16_same_d128", "prefill_bf16_same_d256",
         "prefill_bf16_e4m3_d128", "prefill_f16_e4m3_d128")
DOCS = toolkit.ROOT / "docs/kernels.md"
BEGIN, END = "<!-- kernel-model -->", "<!-- end of kernel-model -->"


def loop_figures(name: str, chip: Chip) -> dict:
    """A loop over keys with memory that is never waited for: decode by bytes a cycle and multiprocessor, prefill by
    TFLOP/s, also with F2FP at 2, 4 and 8 cycles; cycles of a step with 1 to 4 warps a scheduler, those too that do not
    fit."""
    f = kernels.figures(name, chip, whole=False)
    decode = f.names.family == "decode"

    def ceiling(g: kernels.Figures) -> float:
        return round(g.bytes_a_clock() if decode else g.tflops(), 1)

    found = [ceiling(f)]
    if f.classes.get("converts", 0) > 100:
        # Their rate is uncertain, and here it counts.
        found += [ceiling(kernels.figures(name, chip.with_(f2fp_pack=rate, f2fp_unpack=rate), whole=False)) for rate in (2, 4, 8)]
    cycles = [round(f.cycles[b]) if b in f.cycles else round(more_blocks(f, b)) for b in range(1, 16 // f.warps + 1)]
    pipe, share = max(f.busy.items(), key=lambda item: item[1])
    keys = f.keys // f.warps if decode else f.keys
    return {"instructions": len(f.loop), "keys": keys, "classes": f.classes, "registers": f.registers, "blocks": f.blocks,
            "cycles": cycles, "ceiling": found,
            "unit": "B/clk/SM" if decode else "TFLOP/s", "busy": {k: round(v, 2) for k, v in f.busy.items()},
            "bound": f"{pipe} {share:.0%}" if share > 0.75 else f"latency ({pipe} {share:.0%})", "kb_under_way": under_way(f)}


def more_blocks(f: kernels.Figures, blocks: int) -> float:
    return play(ops_of(f.loop, f.chip), f.chip, blocks, kernels.TURNS, None, f.warps, (0.3,)).cycles


def under_way(f: kernels.Figures) -> int:
    """KB that a multiprocessor's copies have under way at most: as many steps as stages of shared memory hold, of
    prefill K of the next tile and V of this one."""
    stages = max(1, f.shared // f.step_bytes) if f.names.family == "decode" else 1
    return f.blocks * stages * f.step_bytes >> 10


def kernel_table(chip: Chip, only: str = "") -> str:
    lines = [f"{chip.title}: {chip.dram_bytes_a_clock:.1f} B a cycle and SM from memory, {chip.peak_tflops:.0f} TFLOP/s", "",
             f"{'kernel':24} {'instr.':>6} {'keys':>4} {'regs':>4} {'fit':>3}  {'cycles, 1 to 4 warps a scheduler':36} "
             f"{'ceiling (at F2FP 2 / 4 / 8)':32} bound"]
    for name in SHOWN:
        if only in name:
            x = loop_figures(name, chip)
            cycles = " / ".join(str(n) if b < x["blocks"] else f"({n})" for b, n in enumerate(x["cycles"]))
            lines.append(f"{name:24} {x['instructions']:6} {x['keys']:4} {x['registers']:4} {x['blocks']:3}  {cycles:36} "
                         f"{ceilings(x['ceiling']) + ' ' + x['unit']:32} {x['bound']}, {x['kb_under_way']} KB under way")
            lines.append(f"{'':24} {', '.join(f'{n} {what}' for what, n in x['classes'].items())}")
    return "\n".join(lines) + "\n"


# What others publish for the same work; docs of the bench cases say where.
PUBLISHED = {
    "prefill b1 s2048 64/8 d128 bs16 bf16": {"h200": "cuDNN 9.19 142 us"},
    "prefill b1 s4096 64/8 d128 bs16 bf16": {"h200": "cuDNN 9.19 465 us"},
    "prefill b1 s8192 64/8 d128 bs16 bf16": {"h200": "cuDNN 9.19 1,708 us"},
    "prefill b1 s16384 64/8 d128 bs16 bf16": {"h200": "cuDNN 9.19 6,531 us"},
    "prefill b8 s2048 16/16 d128 bs16 bf16": {"h100": "FA2 298, FA3 521 TFLOP/s"},
    "prefill b1 s16384 16/16 d128 bs16 bf16": {"h100": "FA2 335, FA3 616 TFLOP/s"},
    "prefill b8 s2048 32/32 d64 bs16 bf16": {"h100": "FA2 262, FA3 371 TFLOP/s"},
    "prefill b1 s16384 32/32 d64 bs16 bf16": {"h100": "FA2 299, FA3 473 TFLOP/s"},
    "prefill b8 s2048 8/8 d256 bs16 bf16": {"h100": "FA2 277, FA3 537 TFLOP/s"},
    "prefill b1 s16384 8/8 d256 bs16 bf16": {"h100": "FA2 298, FA3 642 TFLOP/s"},
    "decode b16 kv2000 constant 32/32 d128 bs8 bf16": {"h100": "FA3 292 us"},
    "decode b16 kv4000 constant 32/32 d128 bs8 bf16": {"h100": "FA3 567 us"},
    "decode b16 kv128 constant 32/32 d128 bs8 bf16": {"h100": "FA3 28 us"},
}
CASES = (
    "decode b1 kv4096 constant 32/8 d128 bs16 bf16", "decode b16 kv4096 constant 32/8 d128 bs16 bf16",
    "decode b64 kv16384 constant 32/8 d128 bs16 bf16", "decode b128 kv4096 longtail 32/8 d128 bs16 bf16",
    "decode b128 kv4096 constant 32/8 d128 bs16 fp8-e4m3", *PUBLISHED,
    "mixed 2q2k_32q1s1k 32/8 d128 bs16 bf16", "mixed q512s2k_31q1s1k 32/8 d128 bs16 bf16",
)


def cell(case: dict, gpu: str, kept: dict) -> str:
    """Microseconds, bars, share."""
    low, high = validation.bars(case, gpu, case["name"].partition(" ")[0], kept)
    return f"{case['predicted_us']:,.0f} ({low:,.0f} to {high:,.0f}), {case['share']:.0%}"


def ceilings(found: list[float]) -> str:
    own, *others = [f"{v:,.0f}" if v >= 100 else f"{v:.1f}" for v in found]
    return own + (f" ({' / '.join(others)})" if others else "")


def docs_table() -> str:
    records = {gpu: record.read(gpu) for gpu in record.GPUS}
    kept = validation.read_errors()
    rows = {gpu: {case["name"]: case for case in made["cases"]} for gpu, made in records.items()}
    titles = [load()[gpu].title.split()[0] for gpu in record.GPUS]
    marked = [title if gpu in validation.VALIDATED else f"{title}, not validated" for title, gpu in zip(titles, record.GPUS)]
    lines = [f"| predicted, us (bars), share | {' | '.join(marked)} | published |", "|---" * (len(titles) + 2) + "|"]
    for name in dict.fromkeys(CASES):
        cells = [cell(rows[gpu][name], gpu, kept) for gpu in record.GPUS]
        said = "; ".join(f"{gpu.upper()}: {text}" for gpu, text in PUBLISHED.get(name, {}).items())
        lines.append(f"| {name} | {' | '.join(cells)} | {said} |")
    lines += ["", "Bars are the ends of what is uncertain in the model, widened by how far it was off in speed, which is, of kernels like these:", "",
              f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for family in ("decode", "prefill"):
        found = [validation.errors(gpu, family, kept) for gpu in record.GPUS]
        cells = [f"{low:+.0%} to {high:+.0%}" for low, high in found]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines += ["", "Loops with memory that is never waited for; in brackets with every F2FP at 2, 4 and 8 cycles (it is 8 to bf16 and"
              " f16 and 2 from e4m3 on H100 and H200, 4 elsewhere):", "",
              f"| kernel | instructions, of keys a warp | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for name in SHOWN:
        loops = {gpu: made["loops"][name] for gpu, made in records.items()}
        cells = [ceilings(x["ceiling"]) for x in loops.values()]
        x = loops["h100"]
        lines.append(f"| {name}, {x['unit']} | {x['instructions']}, {x['keys']} | {' | '.join(cells)} |")
    memory = [f"{load()[gpu].dram_bytes_a_clock:.1f}" for gpu in record.GPUS]
    lines.append(f"| memory has, B/clk/SM | | {' | '.join(memory)} |")
    return "\n".join(lines)


def write_docs() -> None:
    text = DOCS.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{DOCS.name} has no `{BEGIN}` and `{END}`")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCS.write_text(f"{before}{BEGIN}\n{docs_table()}\n{END}{after}", encoding="utf-8")
