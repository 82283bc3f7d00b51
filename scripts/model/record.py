"""What is kept in the repository: predictions of every bench case, and figures that must not grow unnoticed."""

import json
from pathlib import Path
from statistics import median_high as median

from . import kernels, launch, shapes, toolkit
from .chips import Chip
from .timing import ops_of, play

FOLDER = toolkit.ROOT / "benches/record/model"
GPUS = ("a100-80g", "h100", "h200", "l40s", "b200")
# What `check` compiles: each family, with and without conversions, and the other shapes of tiles; mixed ones by side.
WATCHED = {
    "a100-80g": ("decode_bf16_same_d128", "prefill_bf16_same_d128"),
    "h100": ("decode_bf16_same_d128", "decode_bf16_e4m3_d128", "prefill_bf16_same_d128", "prefill_bf16_e4m3_d128",
             "decode_bf16_same_d64", "prefill_bf16_same_d64", "mixed_bf16_same_d128/decode", "mixed_bf16_same_d128/prefill"),
}
GROWN = FOLDER / "grown.txt"
TOLERANCE = 1.03
# Instructions of a way that the counts put on another one: more than these of it are a breach.
MISCOUNTED = 0.01
# Figures of a turn, which are compared by key: a turn of half the keys has half of them to take.
OF_A_TURN = ("instructions", "instructions_body", "instructions_counted", "instructions_masked", "instructions_rescale",
             "cycles", "cycles_alone")
ABOUT = ("Predictions, not measurements: scripts/kernel-model record. least_us and most_us are with every uncertain "
         "number of scripts/model/chips.json at its kinder or its worse end.")


def watched_figures(name: str, chip: Chip) -> dict:
    """What `check` compares: instructions of the ways, and cycles of a turn with one block and with all that fit.
    Of these the median over all starts: the mean moves with how many starts fall into which step. `body` is all
    code of the loop, `counted` that of a turn by the executor's counts: neither depends on which way was chosen."""
    k = kernels.kernel(name, chip.code, chip.ptx)
    threads = k.function.threads or 128
    blocks = launch.fits(name, chip)
    loop = k.loop()
    ops = ops_of(loop, chip)

    def cycles(blocks: int, start: float) -> float:
        return play(ops, chip, blocks, kernels.TURNS, None, threads // 32, (start,)).cycles

    alone = cycles(1, 0.0)
    together = median(cycles(blocks, start) for start in kernels.STARTS) if blocks > 1 else alone
    made = {"keys": kernels.keys_of(k.names, k.family), "instructions": len(loop), "instructions_body": k.body,
            "instructions_counted": round(k.counted), "cycles_alone": round(alone), "cycles": round(together), "blocks": blocks,
            "registers": k.function.registers}
    for way in ("masked", "rescale"):
        made[f"instructions_{way}"] = len(k.loop(way))
    made["instructions_start"], made["instructions_turn"] = len(k.start()), len(k.turn())
    made["classes"] = kernels.by_class(loop)
    return made


def all_watched(chip: Chip) -> dict[str, dict]:
    return {name: watched_figures(name, chip) for name in WATCHED.get(chip.name, ())}


def miscounted(chip: Chip) -> list[str]:
    """Ways that the executor's counts speak against."""
    breaches = []
    for name in WATCHED.get(chip.name, ()):
        k = kernels.kernel(name, chip.code, chip.ptx)
        if not k.is_counted:
            breaches.append(f"{name} on {chip.name} has no counts: scripts/kernel-model count")
            continue
        wrong = k.disagreements()
        uncounted = sum(len(k.flow.code(block)) for block, share in k.counts.items() if share is None)
        if sum(n for n, _, _ in wrong) > MISCOUNTED * len(k.loop()):
            said = ", ".join(f"{n} instructions {'on' if on else 'off'} it that run in {share or 0.0:.2f} of turns"
                             for n, share, on in wrong)
            breaches.append(f"{name} on {chip.name}: the counts speak against its way: {said}")
        if uncounted > MISCOUNTED * k.body:
            breaches.append(f"{name} on {chip.name}: {uncounted} instructions of its loop were not counted: "
                            "scripts/kernel-model count")
    return breaches


def record(chip: Chip, watched: dict, only: str = "", say=print) -> dict:
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


def compare(gpu: str, old: dict[str, dict], new: dict[str, dict], accepted: dict,
            recording: bool = False) -> tuple[list[str], list[str]]:
    """Breaches, and remarks. What is recorded may be new, but may neither grow nor go without a reason."""
    breaches, remarks, met = [], [], set()

    def breach(kernel: str, what: str, text: str) -> None:
        met.add((kernel, gpu, what))
        reason = accepted.get((kernel, gpu, what))
        remarks.append(f"{text}: {reason}") if reason else breaches.append(f"{text}, and {GROWN.name} has no reason")

    def is_number(value) -> bool:
        return isinstance(value, (int, float))

    for kernel in old:
        if kernel not in new:
            breach(kernel, "gone", f"{kernel} on {gpu} is in the record and is not looked at")
    for kernel, figures in new.items():
        before_all = old.get(kernel, {})
        if not before_all:
            if not recording:
                breaches.append(f"{kernel} on {gpu} is not in the record: scripts/kernel-model record --kernels")
            continue
        for what, before in before_all.items():
            if is_number(before) and not is_number(figures.get(what)):
                breach(kernel, what, f"{kernel} on {gpu}: {what} is in the record and was not found")
        keys = before_all.get("keys"), figures.get("keys")
        scale = keys[0] / keys[1] if all(keys) else 1.0
        for what, value in figures.items():
            before = before_all.get(what)
            if not is_number(value) or what in ("registers", "keys"):
                continue
            if not is_number(before):
                if not recording:
                    breaches.append(f"{kernel} on {gpu}: {what} is not in the record: scripts/kernel-model record --kernels")
                continue
            if what == "blocks":
                if value < before:
                    breach(kernel, what, f"{kernel} on {gpu}: {value} blocks fit a multiprocessor, {before} did")
                continue
            scaled = value * scale if what in OF_A_TURN else value
            of = f" by key, {keys[0]} and {keys[1]} a turn" if scaled != value else ""
            if not before or not value:
                # A way that was not there, or is not found any more.
                if before != value:
                    breach(kernel, what, f"{kernel} on {gpu}: {what} was {before} and is {value}")
                continue
            change = scaled / before
            if change > TOLERANCE:
                breach(kernel, what, f"{kernel} on {gpu}: {what} grew from {before} to {value} ({change - 1:+.1%}{of})")
            elif change < 1 / TOLERANCE:
                remarks.append(f"{kernel} on {gpu}: {what} fell from {before} to {value} ({change - 1:+.1%}{of}): record it")
    for kernel, on, what in accepted:
        if on == gpu and (kernel, on, what) not in met:
            breaches.append(f"{GROWN.name}: {what} of {kernel} on {gpu} has not grown")
    return breaches, remarks


def settle(path: Path) -> None:
    """Reasons that a new record has taken stay to be read."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "".join(line + "\n" if not line.strip() or line.startswith("#") else f"# recorded: {line}\n" for line in lines)
    path.write_text(text, encoding="utf-8")
