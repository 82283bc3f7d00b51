"""Shapes of benches/gpu/shape.rs, and a launch's time."""

from dataclasses import dataclass

from .chips import Chip
from .kernels import KernelId, Model

# Assumed, in microseconds: the last arriver of split tiles merges their states.
MERGE_US = 3.0
# Loads that depend on each other before the first key: header, plan, range of work items, work item,
# row, table, key.
START_LOADS = {"decode": 7, "prefill": 7}
UNLOADED = 0.65  # of the latency under load
MASKED_COST = 1.3  # a masked tile's, of an unmasked one's; two for each tile of queries


@dataclass(frozen=True)
class Shape:
    name: str
    rows: tuple[tuple[int, int], ...]  # queries and keys
    heads: tuple[int, int]
    dim: int
    cache_type: str = "same"
    causal: bool = True

    def kernel(self, family: str) -> KernelId:
        return KernelId(family, self.cache_type, self.dim)

    def only(self, rows) -> "Shape":
        return Shape(self.name, tuple(rows), self.heads, self.dim, self.cache_type, self.causal)

    @property
    def kv_bytes(self) -> int:
        size = 1 if self.cache_type == "e4m3" else 2
        return 2 * sum(kv for _, kv in self.rows) * self.heads[1] * self.dim * size

    @property
    def operations(self) -> float:
        def seen(q: int, kv: int) -> float:
            return q * kv - (q * (q - 1) / 2 if self.causal else 0)

        return 4.0 * self.heads[0] * self.dim * sum(seen(q, kv) for q, kv in self.rows)


def cache_name(cache_type: str) -> str:
    return {"same": "bf16", "e4m3": "fp8_e4m3"}[cache_type]


def decode(batch: int, length: int, heads=(32, 8), dim=128, block=16, cache_type="same") -> Shape:
    name = f"decode b{batch} kv{length} constant {heads[0]}/{heads[1]} d{dim} bs{block} {cache_name(cache_type)}"
    return Shape(name, ((1, length),) * batch, heads, dim, cache_type)


def prefill(batch: int, length: int, heads=(64, 8), dim=128, cache_type="same", causal=True) -> Shape:
    full = "" if causal else " full"
    name = f"prefill b{batch} s{length} {heads[0]}/{heads[1]} d{dim} bs16 {cache_name(cache_type)}{full}"
    return Shape(name, ((length, length),) * batch, heads, dim, cache_type, causal)


def number(text: str) -> int:
    return int(text[:-1]) << 10 if text.endswith("k") else int(text)


def mixed(spec: str) -> Shape:
    rows: list[tuple[int, int]] = []
    for part in spec.split("_"):
        count, lengths = part.split("q", 1)
        q, _, kv = lengths.partition("s")
        rows += [(number(q), number(kv or q))] * int(count or 1)
    return Shape(f"mixed {spec} 32/8 d128 bs16 bf16", tuple(rows), (32, 8), 128)


def all_shapes() -> list[Shape]:
    """Those of the benches whose lengths are constant: other patterns have the same keys in all."""
    shapes = [decode(b, n << 10) for b in (1, 8, 16, 32, 64, 128) for n in (1, 4, 16, 32)]
    for heads in ((64, 8), (8, 1), (32, 32)):
        shapes += [decode(b, n << 10, heads) for b in (1, 16, 128) for n in (4, 16)]
    shapes += [
        decode(b, n << 10, cache_type="e4m3") for b, n in ((1, 4), (16, 4), (16, 16), (128, 4))
    ]
    shapes += [decode(64, 4 << 10, dim=dim) for dim in (64, 256)]
    shapes += [prefill(1, n << 10, causal=c) for c in (True, False) for n in (2, 4, 8, 16)]
    shapes += [prefill(1, n << 10, dim=dim) for dim in (64, 256) for n in (2, 8)]
    shapes.append(prefill(1, 4 << 10, cache_type="e4m3"))
    for dim in (64, 128, 256):
        heads = (2048 // dim, 2048 // dim)
        shapes += [prefill(b, (16 << 10) // b, heads, dim) for b in (8, 1)]
    shapes += [mixed(x) for x in (
        "q512s2k_31q1s1k", "2q2k_32q1s1k", "q1k_63q1s2k", "q257_7q1s1057_3q4s2051_2q129s4093",
        "64q4s4k", "8q256s4k",
    )]
    return shapes


@dataclass(frozen=True)
class Launch:
    us: float
    start_us: float
    body_us: float
    end_us: float


def edges(chip: Chip, family: str, splits: bool) -> tuple[float, float]:
    start = START_LOADS[family] * chip.memory_latency * UNLOADED / chip.clock_ghz / 1e3
    return chip.launch_us + start, MERGE_US if splits else 0.5


def decode_launch(shape: Shape, model: Model, cycles: float) -> Launch:
    """All multiprocessors read equal parts of the cache, but for what a step cannot be cut into."""
    chip = model.chip
    tile_bytes = model.copied * model.block_warps
    tiles = -(-shape.kv_bytes // tile_bytes)
    workers = chip.sms * model.blocks
    rounds = -(-tiles // workers) * workers / tiles if tiles < 8 * workers else 1.0
    memory = chip.memory_bytes_per_cycle * chip.read_share
    under_way = bytes_under_way(model) / chip.memory_latency
    rate = min(model.bytes_per_cycle(cycles), memory, under_way)
    body = shape.kv_bytes * rounds / (rate * chip.sms * chip.clock_ghz * 1e3)
    items = len(shape.rows) * shape.heads[1]
    start, end = edges(chip, "decode", items % workers != 0)
    return Launch(start + body + end, start, body, end)


def bytes_under_way(model: Model) -> int:
    """Of a multiprocessor: whole stages of all warps."""
    stages = max(1, model.shared // (model.copied * model.block_warps))
    return model.blocks * model.block_warps * stages * model.copied


def prefill_launch(shape: Shape, model: Model, cycles: float, kernel_id: KernelId) -> Launch:
    """Equal parts of all tiles, as the planner cuts them; a tile's last turn is the tail."""
    chip = model.chip
    keys_of_tile, rows_of_tile = kernel_id.limit("KEYS"), kernel_id.limit("ROWS")
    group = shape.heads[0] // shape.heads[1]
    turns = 0.0
    tiles = 0
    for q, kv in shape.rows:
        count = -(-q * group // rows_of_tile)
        for i in range(count):
            last = min(q, ((i + 1) * rows_of_tile + group - 1) // group)
            visible = kv - q + last if shape.causal else kv
            turns += -(-visible // keys_of_tile) + (2 * (MASKED_COST - 1) if shape.causal else 0)
        tiles += count
    turns *= shape.heads[1]
    tiles *= shape.heads[1]
    workers = chip.sms * model.blocks
    per_worker = max(turns / workers, 1.0)
    to_us = 1 / chip.clock_ghz / 1e3
    start, end = edges(chip, "prefill", tiles % workers != 0)
    body = (per_worker + 1) * cycles * to_us
    return Launch(start + body + end, start, body, end)
