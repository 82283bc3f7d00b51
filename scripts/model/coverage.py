"""The executor of PTX's counts: which blocks of the machine code are run how often, by lines of the source.

With INFLIGHT_PTX_COVERAGE=DIR it writes files of lines `kernel, ptx file, ptx line, source file:line, opcode, warp
executions, taken`, apart by tabs. PTX and machine code have few instructions in common, but products, copies,
fragments and exponentials of a source line are the same in both: these say how often a block was run.
"""

from pathlib import Path

from .flow import Flow

# Of PTX, and what ptxas makes of it; by the start of the opcode.
SAME = {
    "mma.": "HMMA", "ldmatrix": "LDSM", "stmatrix": "STSM", "cp.async.cg": "LDGSTS", "cp.async.ca": "LDGSTS",
    "ex2": "MUFU", "lg2": "MUFU", "rcp": "MUFU", "shfl": "SHFL", "vote": "VOTE", "bar.sync": "BAR", "barrier": "BAR",
    "ld.global": "LDG", "st.global": "STG", "ld.shared": "LDS", "st.shared": "STS", "atom.": "ATOMG",
    "cvt.rn.bf16x2": "F2FP", "cvt.rn.f16x2": "F2FP",
}
FIELDS = 7


def read(folder: Path) -> dict[str, dict[tuple[str, int, str], int]]:
    """Executions by kernel, and there by file, line and opcode of machine code: the most of any PTX line."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        raise ValueError(f"{folder} has no counts: run the tests with INFLIGHT_PTX_COVERAGE={folder}")
    found: dict[str, dict[tuple[str, int, str], int]] = {}
    for path in files:
        # Several processes ran the same lines.
        sums: dict[tuple, int] = {}
        for number, row in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fields = row.split("\t")
            if row.startswith("kernel\t") or not row.strip():
                continue
            if len(fields) != FIELDS:
                raise ValueError(f"{path.name}:{number}: {len(fields)} fields, not {FIELDS}")
            kernel, file, line, place, opcode, executions, _ = fields
            base = next((sass for ptx, sass in SAME.items() if opcode.startswith(ptx)), None)
            name, colon, at = place.rpartition(":")
            if base and colon:
                key = kernel, file, line, (name.rpartition("/")[2], int(at), base)
                sums[key] = sums.get(key, 0) + int(executions)
        for (kernel, _, _, key), executions in sums.items():
            counts = found.setdefault(kernel, {})
            counts[key] = max(counts.get(key, 0), executions)
    return found


def of_blocks(flow: Flow, counts: dict[tuple[str, int, str], int]) -> dict[int, float]:
    """How often each block was run, of those that have an instruction which tells."""
    made = {}
    for block in flow.reachable:
        votes = sorted(counts[key] for x in flow.code(block) for place in x.lines[:1]
                       if (key := (*place, x.base)) in counts)
        if votes:
            made[block] = float(votes[len(votes) // 2])
    return made


def decisions(flow: Flow, head: int, counts: dict[int, float]) -> tuple[set[int], set[int]]:
    """Blocks of a loop that its turns usually run, and those that they do not."""
    body = flow.loops[head]
    turns = max((n for block, n in counts.items() if block in body and flow.count([block], ("HMMA", "HGMMA"))), default=0.0)
    usual = {block for block in body if counts.get(block, -1.0) * 2 >= turns > 0}
    rare = {block for block in body if 0 <= counts.get(block, turns) * 2 < turns}
    return usual, rare
