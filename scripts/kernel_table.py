"""The rows of csrc/kernels.def, and the files that are compiled of them: as build/table.rs, for scripts."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "csrc/kernels.def"
# Where scripts have the files; include paths begin in csrc.
FOLDER = ROOT / "target/kernels"


@cache
def rows(name: str) -> list[tuple[str, ...]]:
    """Of the rows `INFLIGHT_<name>(...)` the fields."""
    start = f"INFLIGHT_{name}("
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return [tuple(field.strip() for field in line[len(start):-1].split(",")) for line in lines if line.startswith(start)]


@dataclass(frozen=True)
class Attention:
    """A row of attention."""

    family: str
    kv: str
    head_dim: int
    v_head_dim: int
    rows: int
    keys: int
    stages: int
    threads: int
    blocks: int
    smem: int
    device: str

    @property
    def kv_bytes(self) -> int:
        return next(int(size) for name, size, _ in rows("KV_TYPE") if name == self.kv)


def attention() -> list[Attention]:
    return [Attention(*row[:2], *map(int, row[2:10]), row[10]) for row in rows("ATTENTION")]


def suffix(row: tuple[str, ...]) -> str:
    """What kernels of a row are called after their family and type of queries."""
    if len(row) < 5:
        return "" if row[1] == "any" else f"_{row[1]}"
    kv, d, v, device = *row[1:4], row[-1]
    return f"_{kv}_d{d}" + (f"_v{v}" if v != d else "") + (f"_{device}" if device != rows("DEVICE_CLASS")[0][0] else "")


def instances() -> dict[str, str]:
    """The text of each file, by its stem, which is its kernel's name without `inflight_`."""
    headers = dict(rows("FAMILY"))
    made = {}
    for row in rows("ATTENTION") + rows("ROWWISE"):
        key = row[1:4] + row[-1:] if len(row) >= 5 else row[1:2]
        for (q,) in rows("Q_TYPE"):
            name = f"{row[0]}_{q}{suffix(row)}"
            fields = ", ".join([q, *(field for field in key if field != "any")])
            made[name] = f'#include "{headers[row[0]]}"\n\nINFLIGHT_{row[0].upper()}_KERNELS(inflight_{name}, {fields})\n'
    return made


def write(folder: Path = FOLDER) -> list[Path]:
    """The files, those that differ from what is there written; their paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in sorted(instances().items()):
        paths.append(folder / f"{name}.cu")
        if not paths[-1].exists() or paths[-1].read_text(encoding="utf-8") != text:
            # Whole at once: other scripts may read it.
            made = folder / f"{name}.{os.getpid()}"
            made.write_text(text, encoding="utf-8")
            made.replace(paths[-1])
    return paths


def sources() -> list[Path]:
    """All that is compiled of csrc: its own files, and those of the table."""
    return sorted((ROOT / "csrc").rglob("*.cu")) + write()
