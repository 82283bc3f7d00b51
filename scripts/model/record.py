"""The record of predictions, what may grow against it, and the table for docs/kernels.md."""

import json
from pathlib import Path

from . import chips, kernels, shapes, toolkit

FOLDER = toolkit.ROOT / "benches/record/model"
GROWN = FOLDER / "grown.txt"
DOCS = toolkit.ROOT / "docs/kernels.md"
BEGIN, END = "<!-- kernel-model: begin -->", "<!-- kernel-model: end -->"
TOLERANCE = 1.03


def describe(kernel_id: kernels.KernelId, chip: chips.Chip, coverage=None) -> dict:
    from . import path as paths

    model = kernels.model(kernel_id, chip, coverage)
    resident = model.run()
    made = {
        "instructions": len(model.path),
        "classes": paths.classes(model.path),
        "registers": model.registers,
        "blocks_per_sm": model.blocks,
        "warps_per_scheduler": model.warps,
        "cycles_per_turn": round(resident.cycles),
        "cycles_by_warps": {w: round(model.run(w).cycles) for w in (1, 2, 3, 4)},
        "cycles_without_barriers": round(model.run(barriers=False).cycles),
        "cycles_by_f2fp": {
            n: round(model.run(chip=chip.with_intervals(f2fp=n)).cycles) for n in kernels.F2FP_INTERVALS
        },
        "bound_by": resident.bound_by,
    }
    if kernel_id.family == "decode":
        made["bytes_per_turn"] = model.copied
        made["bytes_under_way"] = shapes.bytes_under_way(model)
        made["ceiling_bytes_per_clk"] = round(model.bytes_per_cycle(resident.cycles), 1)
        made["memory_bytes_per_clk"] = round(chip.memory_bytes_per_cycle, 1)
        made["ceiling_by_f2fp"] = {
            n: round(model.bytes_per_cycle(c), 1) for n, c in made["cycles_by_f2fp"].items()
        }
    else:
        made["operations_per_turn"] = model.operations
        made["ceiling_tflops"] = round(model.tflops(resident.cycles))
        made["ceiling_tflops_without_barriers"] = round(model.tflops(made["cycles_without_barriers"]))
        made["ceiling_by_f2fp"] = {n: round(model.tflops(c)) for n, c in made["cycles_by_f2fp"].items()}
    return made


def predict(shape: shapes.Shape, chip: chips.Chip, described: dict) -> dict | None:
    decode_rows = [row for row in shape.rows if row[0] * (shape.heads[0] // shape.heads[1]) <= 16]
    prefill_rows = [row for row in shape.rows if row not in decode_rows]
    launches = []
    for family, rows in (("decode", decode_rows), ("prefill", prefill_rows)):
        if not rows:
            continue
        part, kernel_id = shape.only(rows), shape.kernel(family)
        if kernel_id not in kernels.RECORDED:
            return None
        model = kernels.model(kernel_id, chip)
        cycles = described[kernel_id.name]["cycles_per_turn"]
        if family == "decode":
            launches.append(shapes.decode_launch(part, model, cycles))
        else:
            launches.append(shapes.prefill_launch(part, model, cycles, kernel_id))
    us = sum(launch.us for launch in launches)
    made = {"us": round(us, 1), "start_us": round(launches[0].start_us, 1),
            "end_us": round(launches[-1].end_us, 1)}
    if decode_rows and not prefill_rows:
        rate = shape.kv_bytes / us / 1e3
        made |= {"gb_s": round(rate), "share_of_peak": round(rate / chip.memory_gb_s, 3)}
    else:
        rate = shape.operations / us / 1e6
        made |= {"tflops": round(rate), "share_of_peak": round(rate / chip.peak_tflops, 3)}
    return made


def make(chip: chips.Chip, coverage=None) -> dict:
    described = {k.name: describe(k, chip, coverage) for k in kernels.RECORDED}
    predicted = {}
    for shape in shapes.all_shapes():
        if prediction := predict(shape, chip, described):
            predicted[shape.name] = prediction
    return {
        "about": "predictions of scripts/kernel-model, not measurements",
        "sass": f"sm_{chip.sass}",
        "clock_ghz": chip.clock_ghz,
        "kernels": described,
        "shapes": predicted,
    }


def write(names: list[str], coverage=None) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, chip in chips.read().items():
        if names and name not in names:
            continue
        text = json.dumps(make(chip, coverage), indent=1)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"wrote {(FOLDER / name).relative_to(toolkit.ROOT)}.json")
    write_table()


def read(name: str) -> dict:
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path.relative_to(toolkit.ROOT)} is not a file: run `kernel-model record`")
    return json.loads(path.read_text(encoding="utf-8"))


def reasons(file: Path = GROWN) -> dict[tuple[str, str], str]:
    """Lines of `chip kernel reason`."""
    found = {}
    if not file.is_file():
        return found
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            fields = line.split(maxsplit=2)
            if len(fields) != 3:
                raise SystemExit(f"{file}:{number}: is not `chip kernel reason`")
            found[fields[0], fields[1]] = fields[2]
    return found


def growth(old: dict, new: dict) -> list[str]:
    """What grew by more than the tolerance."""
    return [
        f"{what} {old[what]} -> {new[what]} ({new[what] / old[what] - 1:+.1%})"
        for what in ("instructions", "cycles_per_turn")
        if new[what] > old[what] * TOLERANCE
    ]


def check() -> list[str]:
    """Breaches of the named subset."""
    all_chips, known = chips.read(), reasons()
    breaches, grown = [], set()
    for chip_name, kernel_id in kernels.CHECKED:
        model = kernels.model(kernel_id, all_chips[chip_name])
        now = {"instructions": len(model.path), "cycles_per_turn": round(model.run().cycles)}
        old = read(chip_name)["kernels"][kernel_id.name]
        print(f"{chip_name:9} {kernel_id.name:33} {now['instructions']:5} instructions, "
              f"{now['cycles_per_turn']:5} cycles per turn")
        if found := growth(old, now):
            grown.add((chip_name, kernel_id.name))
            if (chip_name, kernel_id.name) not in known:
                breaches.append(f"{chip_name} {kernel_id.name}: {', '.join(found)}, and "
                                f"{GROWN.name} has no reason")
    breaches += [f"{GROWN.name}: {k} does not grow on {c}; remove the line"
                 for c, k in sorted(known.keys() - grown)]
    return breaches


def table() -> str:
    """Markdown: loops, then shapes."""
    names = [name for name in chips.read() if (FOLDER / f"{name}.json").is_file()]
    lines = ["| kernel | chip | instructions | cycles per turn | ceiling | F2FP at 2 / 4 / 8 cycles | bound by |",
             "|---|---|---|---|---|---|---|"]
    for kernel_id in kernels.RECORDED:
        for name in names:
            x = read(name)["kernels"][kernel_id.name]
            by_f2fp = " / ".join(str(v) for v in x["ceiling_by_f2fp"].values())
            if kernel_id.family == "decode":
                ceiling = f"{x['ceiling_bytes_per_clk']} B/clk, memory {x['memory_bytes_per_clk']}"
            else:
                ceiling = f"{x['ceiling_tflops']} to {x['ceiling_tflops_without_barriers']} TFLOP/s"
            lines.append(f"| `{kernel_id.name.removeprefix('inflight_')}` | {name} | {x['instructions']} | "
                         f"{x['cycles_per_turn']} | {ceiling} | {by_f2fp} | {x['bound_by']} |")
    shown = ("decode b128 kv4096 constant 32/8 d128 bs16 bf16",
             "decode b16 kv16384 constant 32/8 d128 bs16 fp8_e4m3",
             "prefill b1 s2048 64/8 d128 bs16 bf16", "prefill b1 s16384 64/8 d128 bs16 bf16")
    lines += ["", "| shape | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for shape in shown:
        cells = []
        for name in names:
            x = read(name)["shapes"][shape]
            rate = f"{x['gb_s']} GB/s" if "gb_s" in x else f"{x['tflops']} TFLOP/s"
            cells.append(f"{rate}, {x['share_of_peak']:.0%}")
        lines.append(f"| {shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{DOCS.name} has no lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    DOCS.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
