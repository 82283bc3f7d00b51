"""The plans of src/plan.rs, as far as time depends on them: which block computes which parts."""

from dataclasses import dataclass, replace


@dataclass
class PlanConfig:
    shares: int
    heads: int
    q_tile: int
    alignment: int
    causal: bool
    tile_cost: int
    key_cost: int


@dataclass(frozen=True)
class Part:
    row: int
    head: int
    q_start: int
    q_len: int
    kv_start: int
    kv_end: int
    merge: int = -1  # which one, or none


@dataclass
class Plan:
    shares: list[list[Part]]
    merges: list[int]  # parts of each


def tiles(config: PlanConfig, row: int, q: int, kv: int, head: int):
    for start in range(0, q, config.q_tile):
        queries = min(config.q_tile, q - start)
        end = kv - q + start + queries if config.causal else kv
        yield Part(row, head, start, queries, 0, max(end, 0))


def snap(config: PlanConfig, tile: Part, begin: int, end: int, cut: int):
    """Where a tile is cut for shares to part at `cut`; None for behind it. As PlanConfig::snap."""
    before, after = max(cut - begin, 0), end - cut
    alignment, half = config.alignment, -(-config.alignment // 2)
    least = -(-(tile.kv_start + half) // alignment) * alignment
    most = max(tile.kv_end - half, 0) // alignment * alignment
    if least <= most:
        def at(key):
            return begin + config.tile_cost + (key - tile.kv_start) * config.key_cost
        offset, step = max(cut - at(least), 0), alignment * config.key_cost
        nearest = offset // step + (offset % step > step // 2)
        key = min(least + nearest * alignment, most)
        late = at(key) - cut
        inside = max(late, max(config.tile_cost - late, 0)) if late >= 0 else -late + config.tile_cost
        if inside < min(before, after):
            return key
    return tile.kv_start if before <= after else None


def make(config: PlanConfig, rows: list[tuple[int, int]]) -> Plan:
    """`rows` are (queries, keys). As Plan::make without fixed splits."""
    def cost(tile):
        return config.tile_cost + (tile.kv_end - tile.kv_start) * config.key_cost

    total = config.heads * sum(cost(t) for row, (q, kv) in enumerate(rows) for t in tiles(config, row, q, kv, 0))
    plan = Plan([[]], [])
    done, number, cut = 0, 1, total // config.shares

    def place(tile):
        nonlocal done, number, cut
        begin = done
        done += cost(tile)
        pieces, start = [], tile.kv_start
        while number < config.shares and cut < done:
            key = snap(config, tile, begin, done, cut)
            if key is None:
                break
            if key > start:
                pieces.append((len(plan.shares) - 1, replace(tile, kv_start=start, kv_end=key)))
                start = key
            plan.shares.append([])
            number += 1
            cut = total * number // config.shares
        pieces.append((len(plan.shares) - 1, replace(tile, kv_start=start)))
        merge = -1
        if len(pieces) > 1:
            merge = len(plan.merges)
            plan.merges.append(len(pieces))
        for share, part in pieces:
            plan.shares[share].append(replace(part, merge=merge))

    for row, (q, kv) in enumerate(rows):
        for head in range(config.heads):
            for tile in tiles(config, row, q, kv, head):
                place(tile)
    plan.shares += [[] for _ in range(config.shares - len(plan.shares))]
    return plan
