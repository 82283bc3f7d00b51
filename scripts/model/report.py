"""Tables: of the loops over keys, and of what docs/kernels.md has."""

from . import kernels, record, toolkit
from .chips import Chip, load

SHOWN = ("decode_bf16_same_d64", "decode_bf16_same_d128", "decode_bf16_same_d256", "decode_bf16_e4m3_d128",
         "decode_f16_e4m3_d128", "prefill_bf16_same_d64", "prefill_bf16_same_d128", "prefill_bf16_same_d256",
         "prefill_bf16_e4m3_d128", "prefill_f16_e4m3_d128")
DOCS = toolkit.ROOT / "docs/kernels.md"
BEGIN, END = "<!-- kernel-model -->", "<!-- end of kernel-model -->"


def ceiling(name: str, chip: Chip, blocks: int | None = None) -> tuple[float, kernels.Figures]:
    """Bytes a cycle and multiprocessor of decode, TFLOP/s of prefill, with memory that is never waited for."""
    f = kernels.figures(name, chip, whole=False)
    return (f.bytes_a_clock(blocks) if f.names.family == "decode" else f.tflops(blocks)), f


def kernel_table(chip: Chip, only: str = "") -> str:
    """Cycles of a step with 1 to as many blocks as fit: warps of each scheduler, where a block has four."""
    lines = [f"{chip.title}: {chip.dram_bytes_a_clock:.1f} B a cycle and SM from memory, {chip.peak_tflops:.0f} TFLOP/s", "",
             f"{'kernel':24} {'instr.':>6} {'regs':>4} {'blocks':>6}  {'cycles a step':24} "
             f"{'ceiling at F2FP 2 / 4 / 8':28} bound"]
    for name in SHOWN:
        if only not in name:
            continue
        values = []
        for cycles in (2, 4, 8):
            value, f = ceiling(name, chip.with_(f2fp=cycles))
            values.append(value)
            if cycles == 2:
                first = f
        f = first
        unit = "B/clk" if f.names.family == "decode" else "TFLOP/s"
        each = " / ".join(f"{round(c)}" for c in f.cycles.values())
        pipe, share = max(f.busy.items(), key=lambda item: item[1])
        way = f"{under_way(f)} KB under way"
        ceilings = " / ".join(f"{v:.1f}" if v < 100 else f"{v:.0f}" for v in values)
        lines.append(f"{name:24} {len(f.loop):6} {f.registers:4} {f.blocks:6}  {each:24} {ceilings + ' ' + unit:28} "
                     f"{pipe} {share:.0%}, {way}")
        lines.append(f"{'':24} {', '.join(f'{n} {what}' for what, n in f.classes.items())}")
    return "\n".join(lines) + "\n"


def under_way(f: kernels.Figures) -> int:
    """KB that a multiprocessor's copies have under way at most."""
    stages = max(1, f.shared // max(1, f.step_bytes)) if f.names.family == "decode" else 1
    return f.blocks * stages * f.step_bytes >> 10


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


def docs_table() -> str:
    records = {gpu: record.read(gpu) for gpu in record.GPUS}
    rows = {gpu: {case["name"]: case for case in made["cases"]} for gpu, made in records.items()}
    titles = [load()[gpu].title.split()[0] for gpu in record.GPUS]
    lines = [f"| predicted, us | {' | '.join(titles)} | published |", "|---" * (len(titles) + 2) + "|"]
    for name in dict.fromkeys(CASES):
        if name not in rows["h100"]:
            continue
        cells = [f"{rows[gpu][name]['predicted_us']:,.0f} ({rows[gpu][name]['share']:.0%})" for gpu in record.GPUS]
        said = "; ".join(f"{gpu.upper()}: {text}" for gpu, text in PUBLISHED.get(name, {}).items())
        lines.append(f"| {name} | {' | '.join(cells)} | {said} |")
    return "\n".join(lines)


def write_docs() -> None:
    text = DOCS.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{DOCS.name} has no `{BEGIN}` and `{END}`")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCS.write_text(f"{before}{BEGIN}\n{docs_table()}\n{END}{after}", encoding="utf-8")
