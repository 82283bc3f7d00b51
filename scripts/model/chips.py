"""What is known of the GPUs: chips.json, each number with where it is from."""

import json
from pathlib import Path

# Of other numbers less is faster.
MORE_IS_FASTER = {"ghz", "dram_share", "l2_bytes_a_clock", "queue", "mufu_ahead"}
DATA = Path(__file__).with_name("chips.json")


class Chip:
    """Its numbers are attributes; `with_` gives another one with some of them changed."""

    def __init__(self, name: str, numbers: dict, sources: dict):
        self.name = name
        self.entries = numbers
        self.sources = sources
        self.title = numbers["title"]
        # What a GPU runs of the default build: code for sm_80 or sm_90, or what its driver makes of PTX.
        self.code = numbers["code"]
        self.ptx = numbers.get("ptx", self.code)

    def __getattr__(self, key: str):
        entries = self.__dict__.get("entries", {})
        if key in entries:
            return entries[key][0]
        raise AttributeError(f"{self.__dict__.get('name')} has no {key} in {DATA.name}")

    def range(self, key: str) -> tuple[float, float, float]:
        """Least, value, most."""
        entry = self.entries[key]
        least, most = entry[2:] if len(entry) == 4 else (entry[0], entry[0])
        return least, entry[0], most

    def source(self, key: str) -> tuple[str, str]:
        """The letter, and the arithmetic from there to the number, if it is not in the source's text."""
        letter, _, how = self.entries[key][1].partition(":")
        return letter, how.strip()

    def with_(self, **changed) -> "Chip":
        entries = dict(self.entries)
        for key, value in changed.items():
            entries[key] = [value, *entries[key][1:]]
        return Chip(self.name, entries, self.sources)

    @property
    def key(self) -> tuple:
        """Equal of chips that are equal."""
        return self.name, tuple(sorted((k, v[0]) for k, v in self.entries.items() if isinstance(v, list)))

    def extreme(self, kind: bool) -> "Chip":
        """With every uncertain number at the end that makes kernels faster, or slower."""
        changed = {}
        for key, entry in self.entries.items():
            if isinstance(entry, list) and len(entry) == 4:
                changed[key] = entry[3] if kind == (key in MORE_IS_FASTER) else entry[2]
        return self.with_(**changed)

    @property
    def hertz(self) -> float:
        return self.ghz * 1e9

    @property
    def dram_bytes_a_clock(self) -> float:
        """Of one multiprocessor, at the data sheet's rate."""
        return self.dram_gbs * 1e9 / self.sms / self.hertz


def load() -> dict[str, Chip]:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    chips = {}
    for name, numbers in data["chips"].items():
        like = data["chips"][numbers["like"]] if "like" in numbers else {}
        chips[name] = Chip(name, {**data["common"], **like, **numbers}, data["sources"])
    return chips
