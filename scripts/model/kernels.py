"""The kernels of the record, and what csrc/kernel_params.h says of them."""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from . import path as paths
from . import sass, toolkit
from .chips import Chip
from .sim import Result, simulate

DECISIONS = Path(__file__).with_name("decisions.txt")
F2FP_INTERVALS = (2, 4, 8)


@dataclass(frozen=True)
class KernelId:
    family: str  # decode, prefill
    cache_type: str  # same, e4m3
    dim: int

    @property
    def source(self) -> str:
        return f"attention/inst/{self.family}_bf16_{self.cache_type}_d{self.dim}"

    @property
    def name(self) -> str:
        return f"inflight_{self.family}_bf16_{self.cache_type}_d{self.dim}"

    def limit(self, what: str) -> int:
        """INFLIGHT_<family>_<what>_[<cache type>_]D<dim>, or without what a kernel does not vary."""
        family, dim = self.family.upper(), f"_D{self.dim}"
        kind = f"_{self.cache_type.upper()}"
        for suffix in (kind + dim, dim, ""):
            value = limits().get(f"INFLIGHT_{family}_{what}{suffix}")
            if value is not None:
                return value
        raise SystemExit(f"csrc/kernel_params.h has no INFLIGHT_{family}_{what} for {self.name}")


RECORDED = tuple(
    KernelId(family, cache_type, dim)
    for family in ("decode", "prefill")
    for cache_type, dim in (("same", 64), ("same", 128), ("same", 256), ("e4m3", 128))
)
# What CI compiles: chip and kernel.
CHECKED = tuple(
    (chip, KernelId(family, cache_type, 128))
    for chip in ("a100-80g", "h100")
    for family, cache_type in (("decode", "same"), ("decode", "e4m3"), ("prefill", "same"))
)


@cache
def limits() -> dict[str, int]:
    text = (toolkit.ROOT / "csrc/kernel_params.h").read_text(encoding="utf-8")
    return {name: int(value) for name, value in re.findall(r"#define (INFLIGHT_\w+) (\d+)\b", text)}


@lru_cache(maxsize=4)
def disassembled(cubin: Path) -> dict[str, sass.Kernel]:
    return sass.disassemble(toolkit.nvdisasm(), cubin)


@dataclass
class Model:
    """A kernel's main loop on a chip."""

    chip: Chip
    registers: int
    threads: int
    shared: int
    path: list[sass.Instruction]

    @property
    def blocks(self) -> int:
        return self.chip.blocks_per_sm(self.registers, self.threads, self.shared)

    @property
    def block_warps(self) -> int:
        return -(-self.threads // 32)

    @property
    def warps(self) -> int:
        """Resident ones of a scheduler."""
        return max(1, self.blocks * self.block_warps // 4)

    def count(self, mnemonic: str) -> int:
        return sum(x.mnemonic == mnemonic for x in self.path)

    @property
    def copied(self) -> int:
        """Bytes that a warp copies in one turn."""
        return 512 * self.count("LDGSTS")

    @property
    def operations(self) -> int:
        """Of a warp's products in one turn."""
        return 4096 * self.count("HMMA")

    def run(self, warps: int = 0, barriers: bool = True, chip: Chip | None = None) -> Result:
        path = self.path if barriers else [x for x in self.path if x.mnemonic != "BAR"]
        return simulate(path, chip or self.chip, warps or self.warps, self.block_warps)

    def bytes_per_cycle(self, cycles: float) -> float:
        return 4 * self.warps * self.copied / cycles

    def tflops(self, cycles: float) -> float:
        per_cycle = 4 * self.warps * self.operations / cycles
        return per_cycle * self.chip.sms * self.chip.clock_ghz / 1e3


def model(kernel_id: KernelId, chip: Chip, coverage: Path | None = None) -> Model:
    cubin = toolkit.our_cubin(kernel_id.source, chip.sass)
    kernel = disassembled(cubin).get(kernel_id.name)
    if kernel is None:
        raise SystemExit(f"{cubin.name} has no kernel {kernel_id.name}")
    counts = executions(coverage, kernel_id, cubin) if coverage else None
    decisions = paths.read_decisions(DECISIONS)
    loop = paths.main_loop(kernel)
    path = paths.common_path(kernel, loop, decisions, counts)
    products = sum(x.mnemonic in paths.PRODUCTS for x in path)
    if products < loop.products or (counts and not any(x.mnemonic == "LDGSTS" for x in path)):
        raise SystemExit(
            f"the path of {kernel_id.name} has {products} of {loop.products} products"
            + (": the rows that were counted are too short for the loop's steady state" if counts else "")
        )
    threads = kernel_id.limit("THREADS")
    return Model(chip, kernel.registers, threads, kernel_id.limit("SMEM"), path)


def executions(folder: Path, kernel_id: KernelId, cubin: Path) -> dict[int, int]:
    """Warp executions by address of SASS, from the counts of the executor of PTX: lines of
    `kernel, ptx file, ptx line, source file:line, opcode, warp executions, taken`."""
    arch = re.search(r"sm_(\d+)", cubin.name)[1]
    by_line: dict[int, int] = {}
    opcodes: dict[int, str] = {}
    for file in sorted(folder.glob("*.tsv")):
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.startswith(kernel_id.name + "\t"):
                    continue
                fields = line.rstrip("\n").split("\t")
                if len(fields) != 7:
                    raise SystemExit(f"{file}:{number}: has {len(fields)} fields and not 7")
                if f".{arch}." not in fields[1] and not fields[1].endswith(f".{arch}"):
                    continue
                at = int(fields[2])
                by_line[at] = by_line.get(at, 0) + int(fields[5])
                opcodes[at] = fields[4]
    if not by_line:
        raise SystemExit(f"{folder} has no counts of {kernel_id.name} for sm_{arch}")
    kernel = sass.disassemble(toolkit.nvdisasm(), cubin, ptx_lines=True)[kernel_id.name]
    lines = {x.address: x.frames[0][1] for x in kernel.instructions if x.frames}
    # The PTX that was executed has to be the PTX of the cubin: its products stand in the same lines.
    products = [lines.get(x.address) for x in kernel.instructions if x.mnemonic == "HMMA"]
    matching = sum(opcodes.get(line, "").startswith("mma") for line in products)
    if matching * 10 < len(products) * 9:
        raise SystemExit(
            f"{folder}: {matching} of {len(products)} products of {kernel_id.name} are in lines of mma: "
            "the counts are of other PTX"
        )
    return {at: by_line.get(line, 0) for at, line in lines.items()}
