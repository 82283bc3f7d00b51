"""A round's record as a table to read."""

import json
import re
from pathlib import Path


def predictions(folder, slug):
    """What the model says of a GPU's bench cases, by their names; nothing where there is no such file."""
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        if is_of(file.stem, slug):
            data = json.loads(file.read_text())
            lists = [data] if isinstance(data, list) else [part for part in data.values() if isinstance(part, list)]
            cases = [case for part in lists for case in part if isinstance(case, dict)]
            return {case["name"]: case for case in cases if "name" in case and "predicted_us" in case}
    return {}


def is_of(name, slug):
    """Whether a model's name, as `a100-80g`, is of the GPU `nvidia-a100-sxm4-80gb`."""
    words = slug.split("-")
    first, *others = name.split("-")
    # Cards of the same name with other clocks and memory.
    if not {"pcie", "nvl"} & set(words) <= set(others):
        return False
    return first in words and all(any(word.startswith(other) for word in words) for other in others)


def table(record, predicted):
    about, seconds = record["about"], record["seconds"] or {}
    built = f"{about['commit']}, built for {', '.join(about['archs']) or 'the emulator'} by {about['compiler']}"
    lines = [f"# {record['gpu']}", "", f"{built}; {seconds.get('used', 0)} of {seconds.get('limit', 0)} s", ""]
    if record.get("nvidia_smi"):
        lines += [", ".join(f"{key} {value}" for key, value in record["nvidia_smi"].items()), ""]
    lines += phases(record["phases"])
    if record.get("rates"):
        lines += rates(record["rates"], assumed(record["gpu"] or ""))
    for key in ("bench", "benches"):
        if record.get(key):
            lines += bench(record[key], predicted)
    if record.get("peers"):
        lines += peers(record["peers"])
    return "\n".join(lines) + "\n"


def phases(found):
    lines = ["| phase | | s | |", "|---|---|---|---|"]
    for name, phase in found.items():
        steps = phase.get("steps", [])
        ended = [f"{step['name']} {step['state']}: {step['status']}" for step in steps if step["state"] != "ok"]
        counts = [f"{step['name']} {step['passed']} passed, {step['failed']} failed" for step in steps if "passed" in step]
        notes = [f"{step['name']}: {step['note']}" for step in steps if "note" in step]
        rest = "; ".join([*ended, *counts, *notes, *([phase["note"]] if phase.get("note") else [])])
        lines.append(f"| {name} | {phase['state']} | {phase['seconds']} | {rest} |")
    return lines


# What a rate is to the model: numbers of scripts/model/chips.json.
NUMBERS = {
    "f2fp_bf16": ["f2fp_pack"], "f2fp_f16": ["f2fp_pack"], "f2fp_from_e4m3": ["f2fp_unpack"], "hmma_bf16": ["hmma"],
    "hmma_f16": ["hmma"], "ldsm": ["ldsm_latency"], "ldsm_trans": ["ldsm_latency"], "movm": ["shfl_latency"],
    "shfl": ["shuffle_wavefronts", "shfl_latency"], "ex2": ["mufu", "mufu_latency"], "ffma": ["fma"], "hfma2_bf16": ["half"],
    "bar": ["bar"], "ldgsts": ["copy_passes"], "clock": ["ghz"], "latency of L2": ["l2_latency"],
    "latency of memory": ["dram_latency"], "reading of L2": ["l2_bytes_a_clock"], "reading of memory": ["dram_gbs", "dram_share"], "empty launch": ["launch_us"],
}


def assumed(gpu):
    """What the model takes for each of a GPU's rates, with ranges; nothing of a GPU that it does not know. Rates are
    cycles of one of four schedulers, latencies are whole."""
    data = json.loads((Path(__file__).parents[1] / "model/chips.json").read_text())
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    chip = next((numbers for name, numbers in data["chips"].items() if is_of(name, slug)), None)
    if chip is None:
        return {}
    entries = data["common"] | data["chips"].get(chip.get("like"), {}) | chip
    says = lambda key, value, _, *ends: f"{key} {value}" + (f" ({ends[0]}..{ends[1]})" if ends else "")
    return {name: ", ".join(says(key, *entries[key]) for key in keys) for name, keys in NUMBERS.items()}


def of_model(model, name):
    """What the model takes for a rate: of `empty launch, 132 blocks` what is before the comma."""
    return model.get("clock" if name.startswith("clock under ") else name.partition(",")[0], "")


def rates(rows, model):
    """Cycles per instruction and warp, by warps, next to what the model takes for it; then the rest."""
    counts = sorted({row["warps"] for row in rows if "warps" in row})
    lines = ["", "Cycles per instruction and warp, by warps of a block: of dependent ones, and of so many at once", "",
             "| | " + " | ".join(f"{n}" for n in counts) + " | model |", "|---" * (len(counts) + 2) + "|"]
    cells = {}
    for row in rows:
        if "warps" in row:
            at_once = "" if row["chains"] == 1 else f", {row['chains']} at once"
            blocks = f", {row['blocks']} blocks" if row.get("blocks", 1) > 1 else ""
            cells.setdefault(f"{row['name']}{at_once}{blocks}", {})[row["warps"]] = row["cycles"]
    for name, found in cells.items():
        values = [found.get(n) for n in counts]
        text = " | ".join("" if value is None else f"{value:.2f}" for value in values)
        lines.append(f"| {name} | {text} | {of_model(model, name)} |")
    others = [row for row in rows if "value" in row]
    if others:
        lines += ["", "| | | | model |", "|---|---|---|---|"]
        lines += [f"| {row['name']} | {row['value']:.2f} | {row['unit']} | {of_model(model, row['name'])} |"
                  for row in others]
    return lines


def bench(record, predicted):
    lines = ["", "| case | µs | p10..p90 | predicted | measured / predicted | in graph | GB/s | TFLOP/s | of |",
             "|---" * 9 + "|"]
    for row in record["rows"]:
        us, graph, case = row["us"], row["graph_us"], predicted.get(row["name"])
        of = ", ".join(f"**{limit['ratio']['median']:.2f}** of {limit['name']} {limit['value']['median']:.0f} {limit['unit']}"
                       for limit in row["limits"])
        said = predicted_of(case, us["median"]) if case else ("", "")
        lines.append(f"| {row['name']} | {us['median']:.1f} | {us['p10']:.1f}..{us['p90']:.1f} | {said[0]} | {said[1]} "
                     f"| {'%.1f' % graph['median'] if graph else ''} | {row['gb_per_s']:.0f} | {row['tflop_per_s']:.1f} | {of} |")
    return lines


def predicted_of(case, measured):
    """Microseconds, with those of the kindest and the worst rates where the model has them, and the ratio."""
    text = f"{case['predicted_us']:.1f}"
    if "least_us" in case and "most_us" in case:
        text += f" ({case['least_us']:.1f}..{case['most_us']:.1f})"
    return text, f"{measured / case['predicted_us']:.2f}"


def peers(record):
    names = record["contenders"]
    lines = ["", "µs, and how many times as long as this library's", "", "| shape | " + " | ".join(names) + " |",
             "|---" * (len(names) + 1) + "|"]
    for row in record["rows"]:
        cells = []
        for name in names:
            found = row["us"].get(name)
            ratio = row["ratios"].get(name)
            cells.append("" if found is None else f"{found['median']:.1f}" + (f" ({ratio:.2f}×)" if ratio else ""))
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return lines + ["", *(f"* {note}" for note in record["notes"])]
