"""Chips: what chips.json says of them, and occupancy."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from .sass import Instruction

FILE = Path(__file__).with_name("chips.json")
FP32 = {"FADD", "FMUL", "FFMA"}
HALF = {"HADD2", "HMUL2", "HFMA2", "HMNMX2"}
CONVERT = {"F2FP", "F2F", "F2I", "I2F", "FRND"}
ALU = {"LOP3", "ISETP", "FMNMX", "FSEL", "SEL", "SHF", "PRMT", "IADD3", "VIADD", "VIADDMNMX", "FSETP",
       "IMNMX", "LEA", "MOV", "PLOP3", "P2R", "R2P", "IABS", "CS2R", "VOTE", "FMNMX3", "VIMNMX", "SGXT",
       "I2FP", "IADD"}
UNIFORM = re.compile(r"U[A-Z]")


@dataclass(frozen=True)
class Chip:
    name: str
    sass: str  # the cubin that runs
    sms: int
    clock_ghz: float
    memory_gb_s: float
    read_share: float  # of memory's bandwidth that a kernel that only reads gets
    peak_tflops: float
    registers: int
    shared_kb: int
    max_warps: int
    max_blocks: int
    intervals: dict[str, float]
    latencies: dict[str, float]
    memory_latency: float
    barrier_latency: float = 20
    branch_latency: float = 8
    read_latency: float = 12
    launch_us: float = 2.5

    @property
    def memory_bytes_per_cycle(self) -> float:
        """Of a multiprocessor."""
        return self.memory_gb_s / self.sms / self.clock_ghz

    def with_intervals(self, **changed: float) -> "Chip":
        return replace(self, intervals={**self.intervals, **changed})

    def pipe(self, x: Instruction) -> tuple[tuple[str, ...], float]:
        """The pipes that take an instruction, and the cycles until they take another one."""
        name, rate = x.mnemonic, self.intervals
        if name in ("HMMA", "QMMA", "IMMA"):
            # 16 x 8 x 16 of 16-bit numbers; half as much, half the time.
            return ("tensor",), rate["hmma"] * (0.5 if ".1688" in x.opcode else 1)
        if name in FP32:
            # Two halves of 16 lanes each where a multiprocessor has 128 lanes of FP32.
            return (("fma", "fma lite") if rate["fp32"] == 1 else ("fma",)), 2
        if name.startswith("IMAD"):
            return ("fma",), rate["imad"]
        if name in HALF:
            return ("fma",), rate["bf16x2" if "BF16" in x.opcode else "f16x2"]
        if name in CONVERT:
            return ("convert",), rate["f2fp"]
        if name == "MUFU":
            return ("mufu",), rate["mufu"]
        if name in ALU:
            return ("alu",), rate["alu"]
        if UNIFORM.match(name) and name not in ("UBLKCP", "UTMALDG"):
            return ("uniform",), rate["uniform"]
        return (), 0.0

    def shared_cycles(self, x: Instruction) -> float:
        name, op = x.mnemonic, x.opcode
        wide = 4 if ".128" in op else 2 if ".64" in op else 1
        if name == "LDSM":
            return 4 if op.endswith(".4") else 2 if op.endswith(".2") else 1
        if name in ("LDS", "STS", "LDL", "STL"):
            return wide
        if name == "LDGSTS":
            return 8  # 4 of tags, 4 of writes
        if name in ("LDG", "STG", "ATOMG"):
            return 4
        return 1 if name in ("SHFL", "MOVM") else 0

    def latency(self, x: Instruction) -> float:
        return self.latencies.get(x.mnemonic, self.latencies["other"])

    def blocks_per_sm(self, registers: int, threads: int, shared: int) -> int:
        """Blocks that are resident at once: by registers in units of 256 a warp, shared memory with
        1 KB a block of the system's, warps and blocks."""
        warps = -(-threads // 32)
        per_warp = -(-max(registers, 1) * 32 // 256) * 256
        # Registers belong to one of four schedulers.
        by_registers = self.registers // 4 // per_warp * 4 // warps
        by_shared = self.shared_kb * 1024 // (-(-shared // 128) * 128 + 1024)
        return min(by_registers, by_shared, self.max_warps // warps, self.max_blocks)


def read(file: Path = FILE) -> dict[str, Chip]:
    content = json.loads(file.read_text(encoding="utf-8"))
    chips = {}
    for name, values in content["chips"].items():
        generation = content["generations"][values.pop("generation")]
        merged = {**generation, **values}
        fields = {k: v for k, v in merged.items() if k != "sources"}
        chips[name] = Chip(name=name, **fields)
    return chips
