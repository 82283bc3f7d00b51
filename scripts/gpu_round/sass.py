#!/usr/bin/env python3
"""That the loops of tests/simt/kernels/rates*.cu time what they say, in what nvcc made of them.

    scripts/gpu_round/sass.py [SM...]     for these (90), by NVCC or scripts/cuda-toolkit, and nvdisasm,
                                          which pip installs into target/nvdisasm

Prints a line per kernel, and exits 1 where a loop has other instructions than it is to have.
"""

import collections
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NVDISASM = "nvidia-cuda-nvdisasm==13.2.51"
STEPS = 64
# The loop's own: a counter, a comparison, a branch, and moves of what goes round.
OWN = 16
# What nvcc puts between dependent products, which wait longer than these take.
PADDING = ("NOP", "UIADD3")
# By kernels: what one of them is, and how many there are per turn.
REGISTERS = {
    "f2fp_bf16": r"F2FP\.BF16\.(F32\.)?PACK_AB", "f2fp_f16": r"F2FP\.(F16\.(F32\.)?)?PACK_AB",
    "f2fp_from_e4m3": r"F2FP\.F16\.E4M3\.UNPACK_B",
    "ex2": r"MUFU\.EX2", "ffma": r"FFMA", "hfma2_bf16": r"HFMA2(\.MMA)?\.BF16(_V2)?", "shfl": r"SHFL\.BFLY",
    "movm": r"MOVM\.16\.MT88", "ldsm": r"LDSM\.16\.M88\.4", "ldsm_trans": r"LDSM\.16\.MT88\.4",
    "hmma_bf16": r"HMMA\.16816\.F32\.BF16", "hmma_f16": r"HMMA\.16816\.F32",
}
CLAIMS = {f"rates_{name}_{chains}": (what, STEPS) for name, what in REGISTERS.items() for chains in (1, 8)}
CLAIMS |= {"rates_bar_1": (r"BAR\.SYNC\..*", STEPS), "rates_pointers": (r"LDG\.E\.64\.STRONG\.GPU", STEPS)}
COPIES = [("1", 1), ("8", 8), ("landed_1", 1), ("landed_8", 8)]
CLAIMS |= {f"rates_ldgsts_{name}": (r"LDGSTS\.E.*\.128.*", n) for name, n in COPIES}
# How a reading of the clock is named here: nvcc makes zeros by the same instruction.
CLOCK = "CLOCK"
BULK = {"tma": r"UTMALDG\.4D.*", "bulk": r"UBLKCP\..*"}
CLAIMS |= {f"rates_{unit}_{name}": (what, n)
           for unit, what in BULK.items() for name, n in COPIES}
# The arrival at the barrier alone, which all figures of the copy engine have in them.
CLAIMS["rates_tma_0"] = (r"SYNCS\.ARRIVE.*", 1)
WGMMA = (r"HGMMA\.64x128x16\.F32\.BF16", 16)
# Next to products of a warpgroup: these, STEPS of each.
BESIDE = {"rates_wgmma": (), "rates_wgmma_ex2": ("MUFU.EX2",), "rates_wgmma_fmul": ("FMUL",),
          "rates_wgmma_ex2_fmul": ("MUFU.EX2", "FMUL")}
CLAIMS |= dict.fromkeys(BESIDE, WGMMA)
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Zx0-9_.]+)\s*(.*?)\s*;")
# Timed within the loop, where the clock is read as well, and which waits.
WITHIN = re.compile(r"rates_(ldgsts|tma|bulk)_")
# Between these readings: moves of an address and a coordinate for a copy, next to the loop's own.
PER_COPY = 4
# What makes one thread of many, or one of their values: not where one has been elected.
CHOICES = ("BRA", "ELECT", "VOTEU", "PLOP3", "WARPSYNC")


def functions(text):
    """Of a disassembly: names, and instructions as (label before it or none, opcode, operands)."""
    found, code, label = {}, None, None
    for line in text.splitlines():
        if begin := re.match(r"\.text\.(\w+):", line):
            code = found.setdefault(begin[1], [])
        elif mark := re.match(r"(\.L_x_\d+):", line):
            label = mark[1]
        elif code is not None and (at := INSTRUCTION.match(line)):
            code.append((label, CLOCK if "SR_CLOCK" in at[2] else at[1], at[2]))
            label = None
    return found


def loop(code, what):
    """The longest piece with such an instruction that is jumped back over: its opcodes, and those before
    and after it."""
    labels = {label: at for at, (label, _, _) in enumerate(code) if label}
    best = (0, 0)
    for end, (_, opcode, operands) in enumerate(code):
        to = re.search(r"`\((\.L_x_\d+)\)", operands)
        begin = labels.get(to[1], end) if opcode.startswith("BRA") and to else end
        if any(re.fullmatch(what, opcode) for _, opcode, _ in code[begin:end]):
            best = max(best, (begin, end + 1), key=lambda piece: piece[1] - piece[0])
    opcodes = [opcode for _, opcode, _ in code]
    return opcodes[best[0]:best[1]], opcodes[:best[0]], opcodes[best[1]:]


def verdict(name, code):
    """What is wrong with a kernel, or nothing; and what its loop has."""
    what, count = CLAIMS[name]
    inside, before, after = loop(code, what)
    claimed = sum(bool(re.fullmatch(what, opcode)) for opcode in inside)
    others = collections.Counter(opcode.split(".")[0] for opcode in inside if not re.fullmatch(what, opcode))
    said = f"{claimed} of {count} {what}, next to {sum(others.values())}: {dict(others.most_common(6))}"
    if WITHIN.match(name):
        # nvcc may have put several turns into one.
        turns = claimed // count
        if claimed != count * turns or not turns:
            return f"other instructions than claimed: {said}", said
        return between(name, inside, what, count, turns)
    if claimed != count:
        return f"other instructions than claimed: {said}", said
    for beside in BESIDE.get(name, ()):
        if inside.count(beside) != STEPS or others.pop(beside.split(".")[0]) != STEPS:
            return f"not {STEPS} {beside} next to them: {said}", said
    if "hmma" in name:
        for padding in PADDING:
            others.pop(padding, None)
    if sum(others.values()) > OWN or others[CLOCK]:
        return f"more than the loop's own: {said}", said
    if CLOCK not in before or CLOCK not in after:
        return "the clock is not read before and after the loop", said
    return None, said


def between(name, inside, what, count, turns):
    """The same of a loop that reads the clock: of what stands between two readings of it."""
    read = [at for at, opcode in enumerate(inside) if opcode == CLOCK]
    pieces = [inside[begin + 1:end] for begin, end in zip(read[::2], read[1::2])]
    others = [[opcode for opcode in piece if not re.fullmatch(what, opcode)] for piece in pieces]
    most = collections.Counter(opcode.split(".")[0] for opcode in max(others, key=len, default=[]))
    said = f"{count} {what}, next to {sum(most.values())} between readings: {dict(most.most_common(6))}"
    if len(read) != 2 * turns or any(len(piece) - len(other) != count for piece, other in zip(pieces, others)):
        return f"the clock is not read around them: {said}", said
    # A wait has a branch.
    if "landed" not in name and any(opcode.split(".")[0] in CHOICES for other in others for opcode in other):
        return f"a choice of one thread between readings: {said}", said
    if sum(most.values()) > OWN + PER_COPY * count:
        return f"more than the copies' own: {said}", said
    return None, said


def nvdisasm():
    folder = ROOT / "target/nvdisasm"
    pattern = "lib/python3*/site-packages/nvidia/cu13/bin/nvdisasm"
    if not list(folder.glob(pattern)):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", NVDISASM], check=True)
    return next(folder.glob(pattern))


def disassembly(sm):
    """Of all kernels; 90 is what it is for alone as well, which has products of warpgroups."""
    install = [ROOT / "scripts/cuda-toolkit"]
    nvcc = os.environ.get("NVCC") or subprocess.check_output(install, text=True).strip()
    sources = [("rates.cu", sm)] + ([("rates_hopper.cu", "90a")] if sm == "90" else [])
    text = ""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "rates.cubin")
        for source, of in sources:
            flags = ["-cubin", "-std=c++17", "-O3", "-I", "csrc", "-I", "tests/simt/kernels", f"-arch=sm_{of}"]
            subprocess.run([nvcc, *flags, f"tests/simt/kernels/{source}", "-o", cubin], cwd=ROOT, check=True)
            text += subprocess.run([nvdisasm(), "-c", cubin], check=True, capture_output=True, text=True).stdout
    return text


def is_there(name, sm):
    """Whether a device has the instructions that a kernel is of."""
    number = int(re.match(r"\d+", sm)[0])
    if name in BESIDE:
        return sm == "90"
    return number >= 89 if "e4m3" in name else number >= 90 or not re.match("rates_(tma|bulk)", name)


def main():
    wrong = 0
    for sm in sys.argv[1:] or ["90"]:
        found = functions(disassembly(sm))
        for name in (name for name in CLAIMS if is_there(name, sm)):
            fault, said = verdict(name, found[name]) if name in found else ("is not there", "")
            wrong += fault is not None
            print(f"sm_{sm} {name:<24} {'WRONG: ' + fault if fault else said}")
    print(f"{wrong} kernels time something else")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
