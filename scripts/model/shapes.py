"""The cases of benches/gpu/shape.rs, by the same names."""

from dataclasses import dataclass

MASK = (1 << 64) - 1


class Rng:
    """That of benches/common."""

    def __init__(self, seed: int):
        self.state = seed

    def unit(self) -> float:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        return ((z ^ z >> 31) >> 11) / (1 << 53)


@dataclass(frozen=True)
class Shape:
    name: str
    kind: str
    rows: tuple[tuple[int, int], ...]  # queries and keys
    heads: tuple[int, int]  # of queries, of keys
    dim: int
    block_size: int
    kv: str  # "bf16" or "fp8"
    causal: bool

    @property
    def group(self) -> int:
        return self.heads[0] // self.heads[1]

    @property
    def kv_bytes(self) -> int:
        return 2 * sum(kv for _, kv in self.rows) * self.heads[1] * self.dim * (2 if self.kv == "bf16" else 1)

    @property
    def tokens(self) -> int:
        return sum(q for q, _ in self.rows)

    @property
    def bytes(self) -> int:
        return self.kv_bytes + 4 * self.tokens * self.heads[0] * self.dim

    @property
    def operations(self) -> float:
        seen = sum(q * kv - (q * (q - 1) // 2 if self.causal else 0) for q, kv in self.rows)
        return 4.0 * self.heads[0] * self.dim * seen


LIKE = {"heads": (32, 8), "dim": 128, "block_size": 16, "kv": "bf16", "causal": True}
PREFILL = {**LIKE, "heads": (64, 8)}
PATTERNS = ("constant", "uniform", "longtail", "bimodal", "skew")
SPECS = ("q512s2k_31q1s1k", "2q2k_32q1s1k", "q1k_63q1s2k", "q257_7q1s1057_3q4s2051_2q129s4093", "64q4s4k", "8q256s4k")
KV_NAMES = {"bf16": "bf16", "fp8": "fp8-e4m3"}


def shape(kind: str, what: str, rows, like: dict) -> Shape:
    full = "" if like["causal"] else " full"
    q, kv = like["heads"]
    name = f"{kind} {what} {q}/{kv} d{like['dim']} bs{like['block_size']} {KV_NAMES[like['kv']]}{full}"
    return Shape(name, kind, tuple(rows), **like)


def lengths(pattern: str, batch: int, mean: int) -> list[int]:
    rng, weights = Rng(7), []
    for row in range(batch):
        if pattern == "uniform":
            weights.append(0.1 + 1.8 * rng.unit())
        elif pattern == "longtail":
            weights.append(1.0 if row % 8 == 0 else (1.0 + rng.unit()) / 16.0)
        elif pattern == "bimodal":
            weights.append((1.0, 0.125)[row % 2])
        elif pattern == "skew" and row == 0:
            weights.append(float(max(batch - 1, 1)))
        else:
            weights.append(1.0)
    each = batch * mean / sum(weights)
    return [max(int(weight * each), 1) for weight in weights]


def decode(batch: int, length: int, pattern: str = "constant", **like) -> Shape:
    rows = [(1, kv) for kv in lengths(pattern, batch, length)]
    return shape("decode", f"b{batch} kv{length} {pattern}", rows, LIKE | like)


def prefill(batch: int, length: int, **like) -> Shape:
    return shape("prefill", f"b{batch} s{length}", [(length, length)] * batch, PREFILL | like)


def spec(text: str) -> Shape:
    """`2q2k_32q1s1k`: 2 prompts of 2,048 tokens and 32 rows of 1 query, the last of 1,024 keys."""
    def number(text: str) -> int:
        return int(text[:-1]) << 10 if text.endswith("k") else int(text)

    rows = []
    for part in text.split("_"):
        count, _, rest = part.partition("q")
        q, _, kv = rest.partition("s")
        rows += [(number(q), number(kv or q))] * int(count or 1)
    return shape("mixed", text, rows, LIKE)


def every() -> list[Shape]:
    """As `shape::all(false)`, in its order."""
    found: dict[str, Shape] = {}

    def add(x: Shape) -> None:
        found.setdefault(x.name, x)

    for batch in (1, 8, 16, 32, 64, 128):
        for length in (1024, 4096, 16384, 32768):
            add(decode(batch, length))
    for heads in ((32, 8), (64, 8), (8, 1), (32, 32)):
        for batch in (1, 16, 128):
            for length in (4096, 16384):
                add(decode(batch, length, heads=heads))
    for block_size in (1, 8, 16, 64, 128):
        for batch in (16, 128):
            add(decode(batch, 4096, block_size=block_size))
    for batch, length in ((1, 4096), (16, 4096), (16, 16384), (128, 4096)):
        add(decode(batch, length, kv="fp8"))
    for kv in ("bf16", "fp8"):
        for pattern in PATTERNS:
            for batch in (32, 128):
                add(decode(batch, 4096, pattern, kv=kv))
    for dim in (64, 256):
        add(decode(64, 4096, dim=dim))
    for length in (128, 2000, 4000):
        add(decode(16, length, heads=(32, 32), block_size=8))
    for causal in (True, False):
        for length in (2048, 4096, 8192, 16384):
            add(prefill(1, length, causal=causal))
    for dim in (64, 256):
        for length in (2048, 8192):
            add(prefill(1, length, dim=dim))
    add(prefill(1, 4096, kv="fp8"))
    for dim in (64, 128, 256):
        for batch in (8, 1):
            add(prefill(batch, 16384 // batch, dim=dim, heads=(2048 // dim, 2048 // dim)))
    for text in SPECS:
        add(spec(text))
    return list(found.values())
