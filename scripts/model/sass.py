"""Machine code with its control bits: what nvdisasm prints of a cubin, and what the cubin says of its kernels.

Instructions of sm_80 and later have 128 bits. Bits 105 to 125 are ptxas's own schedule: cycles until the
warp's next instruction (4), a hint to yield (1), the scoreboards that a result and the reading of operands
release (3 each, 7 for none), and the scoreboards that are waited for (6).
"""

import re
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

NO_SCOREBOARD = 7


@dataclass(frozen=True)
class Control:
    stall: int
    yields: bool
    write: int  # scoreboard that the result releases
    read: int  # scoreboard that the reading of operands releases
    wait: int  # a bit each of six scoreboards


def control_of(high: int) -> Control:
    """From the upper 64 bits of an instruction."""
    bits = high >> 41
    return Control(bits & 15, not bits >> 4 & 1, bits >> 5 & 7, bits >> 8 & 7, bits >> 11 & 63)


@dataclass
class Instruction:
    address: int
    predicate: str  # `@!P0`, or nothing
    opcode: str  # with modifiers: `LDSM.16.MT88.4`
    operands: str
    control: Control
    # (file name, line), what is inlined first, where it is called from after it.
    lines: tuple[tuple[str, int], ...] = ()

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> str | None:
        """The label that it goes to."""
        found = re.search(r"`\((\.L\S+?)\)", self.operands)
        return found[1] if found else None


@dataclass
class Function:
    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of the instruction
    registers: int = 0
    stack: int = 0  # bytes a thread
    threads: int = 0  # of a block, at most
    static_shared: int = 0


CODE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/")
SECOND = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")
LINE = re.compile(r'\s*//## File "([^"]+)", line (\d+)( inlined at)?')


def parse(text: str) -> dict[str, Function]:
    """Functions by name, from the output of `nvdisasm -c -hex -gi`."""
    functions: dict[str, Function] = {}
    current = None
    pending: list[str] = []
    lines: list[tuple[str, int]] = []
    is_chain = False
    code = None
    for line in text.splitlines():
        if line.startswith(".text."):
            name = line[len(".text."):].rstrip(":")
            current = functions.setdefault(name, Function(name))
            pending, lines, is_chain = [], [], False
            continue
        if line.lstrip().startswith(".section") and ".text." not in line:
            current = None
        if current is None:
            continue
        if found := CODE.match(line):
            code = found
            is_chain = False
            continue
        if code and (found := SECOND.match(line)):
            for label in pending:
                current.labels[label] = len(current.instructions)
            pending = []
            address, predicate, opcode, operands, _ = code.groups()
            instruction = Instruction(int(address, 16), predicate or "", opcode, operands,
                                      control_of(int(found[1], 16)), tuple(lines))
            current.instructions.append(instruction)
            code = None
        elif found := LINE.match(line):
            if not is_chain:
                lines = []
            lines.append((found[1].rpartition("/")[2], int(found[2])))
            is_chain = found[3] is not None
        elif line.startswith(".L"):
            pending.append(line.rstrip().rstrip(":"))
    return functions


def read(cubin: Path, nvdisasm: Path) -> dict[str, Function]:
    command = [str(nvdisasm), "-c", "-hex", "-gi", str(cubin)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise ValueError(f"{cubin}: nvdisasm says {ran.stderr.strip()}")
    functions = parse(ran.stdout)
    describe(cubin.read_bytes(), functions)
    return functions


# ---- what the cubin says of its kernels

# Attributes of .nv.info: those of a function name it, others are of the section's kernel.
FRAME_SIZE, REGISTERS, MAX_THREADS = 0x11, 0x2F, 0x05


def sections(image: bytes) -> list[tuple[str, int, bytes]]:
    """Name, size and content of each; none of what has no bits in the file."""
    offset, = struct.unpack_from("<Q", image, 40)
    entry, count, names_at = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, offset + i * entry) for i in range(count)]
    names = headers[names_at]
    made = []
    for name, kind, _flags, _address, at, size in headers:
        start = names[4] + name
        text = image[start:image.index(b"\0", start)].decode()
        made.append((text, size, b"" if kind == 8 else image[at:at + size]))
    return made


def attributes(content: bytes):
    """(attribute, payload) of a section of attributes."""
    at = 0
    while at + 4 <= len(content):
        form, attribute, size = struct.unpack_from("<BBH", content, at)
        at += 4
        payload = b""
        if form == 4:
            payload = content[at:at + size]
            at += size
        yield attribute, payload


def describe(image: bytes, functions: dict[str, Function]) -> None:
    """Adds registers, stack, threads and static shared memory."""
    all_sections = sections(image)
    by_name = {name: content for name, _, content in all_sections}
    symbols, strings = by_name.get(".symtab", b""), by_name.get(".strtab", b"")

    def symbol(index: int) -> str:
        name, = struct.unpack_from("<I", symbols, index * 24)
        return strings[name:strings.index(b"\0", name)].decode()

    for attribute, payload in attributes(by_name.get(".nv.info", b"")):
        if attribute in (FRAME_SIZE, REGISTERS):
            index, value = struct.unpack("<II", payload[:8])
            if function := functions.get(symbol(index)):
                if attribute == REGISTERS:
                    function.registers = value
                else:
                    function.stack = value
    for name, size, content in all_sections:
        if name.startswith(".nv.info.") and (function := functions.get(name[len(".nv.info."):])):
            for attribute, payload in attributes(content):
                if attribute == MAX_THREADS:
                    x, y, z = struct.unpack("<III", payload[:12])
                    function.threads = x * y * z
        if name.startswith(".nv.shared.") and (function := functions.get(name[len(".nv.shared."):])):
            function.static_shared = size
