"""SASS as nvdisasm prints it: instructions, control bits, labels and source lines."""

import re
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

# A scoreboard field with this value names none.
NO_SCOREBOARD = 7
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);\s+/\* 0x([0-9a-f]{16}) \*/")
SECOND_WORD = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
LINE = re.compile(r'\s*//## File "([^"]+)", line (\d+)')
LABEL = re.compile(r"(\.L\S+):")
FUNCTION = re.compile(r"\.text\.(\S+):")
TARGET = re.compile(r"`\((\.L\S+)\)")


@dataclass(frozen=True)
class Control:
    """What ptxas schedules an instruction with: bits 105 to 125 of its 128."""

    stall: int  # cycles until the warp's next instruction
    yields: bool
    write_scoreboard: int  # released when the result is written
    read_scoreboard: int  # released when the operands are read
    wait_mask: int  # scoreboards that have to be released first

    @classmethod
    def decode(cls, high_word: int) -> "Control":
        bits = high_word >> 41 & 0x1FFFFF
        return cls(bits & 15, not bits >> 4 & 1, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)


@dataclass
class Instruction:
    address: int
    text: str
    control: Control
    frames: tuple[tuple[str, int], ...] = ()  # file and line, the innermost inlined call first
    target: str = ""

    @property
    def predicated(self) -> bool:
        return self.text.startswith("@")

    @property
    def opcode(self) -> str:
        words = self.text.split()
        return words[1] if self.predicated else words[0]

    @property
    def mnemonic(self) -> str:
        return self.opcode.split(".")[0]


@dataclass
class Kernel:
    name: str
    registers: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the index of the instruction

    def target(self, instruction: Instruction) -> int:
        return self.labels[instruction.target]


def parse(text: str) -> dict[str, Kernel]:
    """The kernels of `nvdisasm -c -hex -gi`."""
    kernels: dict[str, Kernel] = {}
    kernel = None
    frames: list[tuple[str, int]] = []
    new_frames = False
    low = None
    for line in text.splitlines():
        if found := FUNCTION.match(line):
            kernel = kernels.setdefault(found[1], Kernel(found[1]))
        elif line.lstrip().startswith(".section"):
            kernel = None
        elif kernel is None:
            continue
        elif found := LABEL.match(line):
            kernel.labels[found[1]] = len(kernel.instructions)
        elif found := LINE.match(line):
            if not new_frames:
                frames, new_frames = [], True
            frames.append((found[1], int(found[2])))
        elif found := INSTRUCTION.match(line):
            low, new_frames = found, False
        elif low is not None and (found := SECOND_WORD.match(line)):
            target = TARGET.search(low[2])
            kernel.instructions.append(
                Instruction(
                    int(low[1], 16),
                    low[2].strip(),
                    Control.decode(int(found[1], 16)),
                    tuple(frames),
                    target[1] if target else "",
                )
            )
            low = None
    return {name: kernel for name, kernel in kernels.items() if kernel.instructions}


def registers(image: bytes) -> dict[str, int]:
    """Registers per thread of a cubin's kernels: attribute 0x2f of .nv.info."""
    table, = struct.unpack_from("<Q", image, 40)
    size, count, names = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, table + i * size) for i in range(count)]

    def text(base: int, at: int) -> str:
        return image[base + at : image.index(b"\0", base + at)].decode()

    named = {text(headers[names][4], header[0]): header for header in headers}
    info, symbols, strings = (named[x] for x in (".nv.info", ".symtab", ".strtab"))
    found = {}
    at, end = info[4], info[4] + info[5]
    while at + 4 <= end:
        form, attribute, length = struct.unpack_from("<BBH", image, at)
        at += 4
        if form != 4:  # the value stands where a length would
            continue
        if attribute == 0x2F:
            index, value = struct.unpack_from("<II", image, at)
            name, = struct.unpack_from("<I", image, symbols[4] + 24 * index)
            found[text(strings[4], name)] = value
        at += length
    return found


def disassemble(nvdisasm: Path, cubin: Path, ptx_lines: bool = False) -> dict[str, Kernel]:
    """With `ptx_lines` the frames are lines of the PTX instead of the source."""
    lines = "-gp" if ptx_lines else "-gi"
    done = subprocess.run(
        [nvdisasm, "-c", "-hex", lines, cubin], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"nvdisasm does not read {cubin}: {done.stderr.strip()}")
    kernels = parse(done.stdout)
    for name, value in registers(cubin.read_bytes()).items():
        if name in kernels:
            kernels[name].registers = value
    return kernels
