#!/usr/bin/env python3
"""Draws docs/img/slots.svg, the README's picture, from decisions of the program itself.

    cargo build --release && python3 docs/img/slots.py
"""

import json
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLOTS, SCALE, ROW, GAP, LEFT, TOP = 8, 3.0, 15, 3, 84, 30
# (prompt, output) of 20 requests that come at once: most answers short, some long.
OUTPUTS = [60, 12, 30, 9, 22, 110, 18, 40, 14, 25, 70, 8, 35, 16, 28, 11, 50, 20, 13, 32]
FILLS = ["#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#99ddff", "#44bb99", "#bbcc33", "#c7aee5"]


def decisions(policy: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        trace, out = Path(folder, "trace.csv"), Path(folder, "out.jsonl")
        rows = "".join(f"0,16,{output}\n" for output in OUTPUTS)
        trace.write_text("arrival_step,prompt_len,output_len\n" + rows)
        command = [ROOT / "target/release/inflight", "replay", trace, "--device", "none"]
        limits = ["--num-blocks", "200", "--max-num-seqs", str(SLOTS)]
        subprocess.run(
            [*command, *limits, "--policy", policy, "--decisions", out],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return [json.loads(line) for line in out.read_text().splitlines()]


def stays(steps: list[dict], static: bool) -> list[tuple[int, int, int, int, int]]:
    """(slot, request, first step, last useful step, last held step)"""
    useful: dict[int, list[int]] = {}
    for step in steps:
        for request in step["decode"] + [row[0] for row in step["prefill"]]:
            useful.setdefault(request, [step["step"], 0])[1] = step["step"] + 1
    free_at, result = [0] * SLOTS, []
    ends = sorted({end for _, end in useful.values()})
    for request, (start, end) in sorted(useful.items(), key=lambda item: (item[1][0], item[0])):
        held = end
        if static:
            # A batch ends with its longest member, before the next one starts.
            batch = [stop for begin, stop in useful.values() if begin == start]
            held = max(batch)
        slot = next(i for i, at in enumerate(free_at) if at <= start)
        free_at[slot] = held
        result.append((slot, request, start, end, held))
    assert ends, "no request ran"
    return result


def panel(title: str, steps: list[dict], static: bool, top: int) -> tuple[list[str], int]:
    rows, last = stays(steps, static), steps[-1]["step"] + 1
    busy = sum(end - start for _, _, start, end, _ in rows) / (SLOTS * last)
    out = [
        f'<text x="{LEFT}" y="{top - 8}" class="t">{title}: {len(rows)} requests in {last} steps, '
        f"slots useful {busy:.0%} of the time</text>"
    ]
    for slot in range(SLOTS):
        y = top + slot * (ROW + GAP)
        out.append(f'<text x="{LEFT - 8}" y="{y + 11}" class="s">slot {slot}</text>')
        out.append(f'<rect x="{LEFT}" y="{y}" width="{last * SCALE}" height="{ROW}" class="e"/>')
    for slot, request, start, end, held in rows:
        x, y = LEFT + start * SCALE, top + slot * (ROW + GAP)
        if held > end:
            out.append(
                f'<rect x="{LEFT + end * SCALE}" y="{y}" width="{(held - end) * SCALE}" '
                f'height="{ROW}" fill="url(#h)"/>'
            )
        out.append(
            f'<rect x="{x}" y="{y}" width="{(end - start) * SCALE - 1}" height="{ROW}" rx="2" '
            f'fill="{FILLS[request % len(FILLS)]}"/>'
        )
        if (end - start) * SCALE > 22:
            out.append(f'<text x="{x + 4}" y="{y + 11}" class="n">{request}</text>')
    return out, last


def main() -> None:
    height = SLOTS * (ROW + GAP)
    first, width_a = panel("static", decisions("static"), True, TOP)
    second, width_b = panel("continuous", decisions("continuous"), False, TOP + height + 42)
    width = LEFT + max(width_a, width_b) * SCALE + 12
    total = TOP + 2 * height + 42 + 34
    body = "\n".join(first + second)
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {total}" role="img"
     aria-label="Slots over time under static and under continuous batching">
<style>
text {{ font: 12px system-ui, sans-serif; fill: #222 }}
.t {{ font-weight: 600 }} .s {{ text-anchor: end; fill: #666; font-size: 11px }}
.n {{ font-size: 10px }} .e {{ fill: #f1f1ef }}
</style>
<defs><pattern id="h" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="5" height="5" fill="#dcdcd8"/><line x1="0" y1="0" x2="0" y2="5" stroke="#aaa" stroke-width="2"/>
</pattern></defs>
<rect width="100%" height="100%" fill="#fff"/>
{body}
<text x="{LEFT}" y="{total - 12}" class="s" style="text-anchor:start">Each bar is a request, each
 step one iteration; hatched: the answer is complete, the slot still held.</text>
</svg>
"""
    Path(ROOT, "docs/img/slots.svg").write_text(svg)


if __name__ == "__main__":
    main()
