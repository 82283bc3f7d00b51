"""What is kept in the repository: predictions of every bench case, and figures that must not grow unnoticed."""

import json
from pathlib import Path
from statistics import median_high as median

from . import kernels, launch, shapes, toolkit
from .chips import Chip
from .timing import ops_of, play

FOLDER = toolkit.ROOT / "benches/record/model"
GPUS = ("a100-80g", "h100", "h200", "l40s", "b200")
# What `check` compiles: each family, with and without conversions, and the other shapes of tiles.
WATCHED = {
    "a100-80g": ("decode_bf16_same_d128", "prefill_bf16_same_d128"),
    "h100": ("decode_bf16_same_d128", "decode_bf16_e4m3_d128", "prefill_bf16_same_d128", "prefill_bf16_e4m3_d128",
             "decode_bf16_same_d64", "prefill_bf16_same_d64", "mixed_bf16_same_d128"),
}
GROWN = FOLDER / "grown.txt"
TOLERANCE = 1.03
ABOUT = ("Predictions, not measurements: scripts/kernel-model record. least_us and most_us are with every uncertain "
         "number of scripts/model/chips.json at its kinder or its worse end.")


def watched_figures(name: str, chip: Chip) -> dict:
    """What `check` compares: instructions of the ways, and cycles of a step with one block and with all that fit.
    Of these the median over all starts: the mean moves with how many starts fall into which step."""
    k = kernels.kernel(name, chip.code, chip.ptx)
    threads = k.function.threads or 128
    blocks = launch.fits(name, chip)
    loop = k.loop()
    ops = ops_of(loop, chip)

    def cycles(blocks: int, start: float) -> float:
        return play(ops, chip, blocks, kernels.TURNS, None, threads // 32, (start,)).cycles

    alone = cycles(1, 0.0)
    together = median(cycles(blocks, start) for start in kernels.STARTS) if blocks > 1 else alone
    made = {"instructions": len(loop), "cycles_alone": round(alone), "cycles": round(together), "blocks": blocks,
            "registers": k.function.registers}
    for way in ("masked", "rescale"):
        made[f"instructions_{way}"] = len(k.loop(way))
    made["instructions_start"], made["instructions_turn"] = len(k.start()), len(k.turn())
    made["classes"] = kernels.by_class(loop)
    return made


def record(chip: Chip, only: str = "", say=print) -> dict:
    from . import report  # which reads records

    cases = []
    kind, worse = chip.extreme(True), chip.extreme(False)
    for shape in shapes.every():
        if only not in shape.name:
            continue
        p = launch.predict(shape, chip)
        least, most = launch.predict(shape, kind, less=True).us, launch.predict(shape, worse, "greedy", less=True).us
        cases.append({"name": shape.name, "predicted_us": round(p.us, 2), "least_us": round(min(least, p.us), 2),
                      "most_us": round(max(most, p.us), 2), "share": round(p.share, 3), "gbs": round(p.gbs),
                      "tflops": round(p.tflops), "bound": p.bound})
        say(f"{chip.name:9} {shape.name:66} {p.us:10.1f} us ({least:.1f} to {most:.1f}) {p.share:5.0%} {p.bound}")
    watched = {name: watched_figures(name, chip) for name in WATCHED.get(chip.name, ())}
    return {"about": ABOUT, "gpu": chip.title, "nvcc": toolkit.version(toolkit.nvcc()), "kernels": watched,
            "loops": {name: report.loop_figures(name, chip) for name in report.SHOWN}, "cases": cases}


def write(name: str, made: dict) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    rows_of = [key for key in ("kernels", "loops", "cases") if key in made]
    head = {key: value for key, value in made.items() if key not in rows_of}
    # One case a line: so a change shows what it changes.
    text = json.dumps(head, indent=1)[:-2]
    for key in rows_of:
        rows = made[key]
        if isinstance(rows, list):
            lines, (opening, closing) = [json.dumps(x) for x in rows], "[]"
        else:
            lines, (opening, closing) = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()], "{}"
        inside = "\n  " + ",\n  ".join(lines) + "\n " if lines else ""
        text += f',\n "{key}": {opening}{inside}{closing}'
    path.write_text(text + "\n}\n", encoding="utf-8")
    return path


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


# ---- what must not grow

def reasons(path: Path) -> dict[tuple[str, str, str], str]:
    """Lines `kernel gpu figure reason`."""
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(maxsplit=3)
        if len(fields) != 4:
            raise ValueError(f"{path.name}:{number}: not `kernel gpu figure reason`")
        found[fields[0], fields[1], fields[2]] = fields[3]
    return found


def compare(gpu: str, old: dict[str, dict], new: dict[str, dict], accepted: dict) -> tuple[list[str], list[str]]:
    """Breaches, and remarks."""
    breaches, remarks, grown = [], [], set()
    for kernel, figures in new.items():
        if kernel not in old:
            breaches.append(f"{kernel} on {gpu} is not in the record: scripts/kernel-model record --kernels")
            continue
        for what, value in figures.items():
            before = old[kernel].get(what)
            if not isinstance(value, (int, float)) or before is None:
                continue
            if what == "blocks":
                if value < before:
                    breaches.append(f"{kernel} on {gpu}: {value} blocks fit a multiprocessor, {before} did")
                continue
            if what == "registers" or not before:
                continue
            change = value / before
            if change > TOLERANCE:
                grown.add((kernel, gpu, what))
                reason = accepted.get((kernel, gpu, what))
                text = f"{kernel} on {gpu}: {what} grew from {before} to {value} ({change - 1:+.1%})"
                remarks.append(f"{text}: {reason}") if reason else breaches.append(f"{text}, and {GROWN.name} has no reason")
            elif change < 1 / TOLERANCE:
                remarks.append(f"{kernel} on {gpu}: {what} fell from {before} to {value} ({change - 1:+.1%}): record it")
    for kernel, on, what in accepted:
        if on == gpu and kernel in new and (kernel, on, what) not in grown:
            breaches.append(f"{GROWN.name}: {what} of {kernel} on {gpu} has not grown")
    return breaches, remarks
