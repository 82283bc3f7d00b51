"""A round's record as a table to read."""

import json


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
    return first in words and all(any(word.startswith(other) for word in words) for other in others)


def table(record, predicted):
    about, seconds = record["about"], record["seconds"] or {}
    built = f"{about['commit']}, built for {', '.join(about['archs']) or 'the emulator'} by {about['compiler']}"
    lines = [f"# {record['gpu']}", "", f"{built}; {seconds.get('used', 0)} of {seconds.get('limit', 0)} s", ""]
    if record.get("nvidia_smi"):
        lines += [", ".join(f"{key} {value}" for key, value in record["nvidia_smi"].items()), ""]
    lines += phases(record["phases"])
    if record.get("rates"):
        lines += rates(record["rates"])
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


def rates(rows):
    """Cycles per instruction and warp, by warps; then the rest."""
    counts = sorted({row["warps"] for row in rows if "warps" in row})
    lines = ["", "Cycles per instruction and warp, by warps of a block: of dependent ones, and of so many at once", "",
             "| | " + " | ".join(f"{n}" for n in counts) + " |", "|---" * (len(counts) + 1) + "|"]
    cells = {}
    for row in rows:
        if "warps" in row:
            at_once = "" if row["chains"] == 1 else f", {row['chains']} at once"
            blocks = f", {row['blocks']} blocks" if row.get("blocks", 1) > 1 else ""
            cells.setdefault(f"{row['name']}{at_once}{blocks}", {})[row["warps"]] = row["cycles"]
    for name, found in cells.items():
        values = [found.get(n) for n in counts]
        lines.append(f"| {name} | " + " | ".join("" if value is None else f"{value:.2f}" for value in values) + " |")
    others = [row for row in rows if "value" in row]
    if others:
        lines += ["", "| | | |", "|---|---|---|"]
        lines += [f"| {row['name']} | {row['value']:.2f} | {row['unit']} |" for row in others]
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
