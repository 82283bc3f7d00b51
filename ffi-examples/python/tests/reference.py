"""Attention over paged KV in plain numpy, in binary64, one query at a time."""

import numpy as np

import inflight


def to_bf16(x):
    """Bits of bfloat16, rounded to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored(x, dtype):
    """Numbers as an array of the type has them."""
    if dtype == "bf16":
        return to_bf16(x)
    return x.astype({"f32": np.float32, "f16": np.float16}[dtype])


def numbers(x):
    return (from_bf16(x) if x.dtype == np.uint16 else x).astype(np.float64)


def from_fp8(bits):
    """OCP e4m3 without infinities."""
    bits = bits.astype(np.int64)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    value = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    )
    value = np.where((exponent == 15) & (mantissa == 7), np.nan, value)
    return np.where(bits & 128, -value, value)


def paged(lens, block_size, num_blocks, rng):
    """Rows of (queries, keys) over blocks in no order: a batch, and each row's slots."""
    free = list(rng.permutation(np.arange(1, num_blocks)))
    qo, kv, indices, last, slots, positions = [0], [0], [], [], [], []
    for queries, keys in lens:
        table = [free.pop() for _ in range(-(-keys // block_size))]
        at = np.arange(keys)
        row = np.array(table, np.int64)[at // block_size] * block_size + at % block_size
        slots.append(row)
        positions.append(at[keys - queries :])
        indices += table
        qo.append(qo[-1] + queries)
        kv.append(len(indices))
        last.append((keys - 1) % block_size + 1 if keys else 0)
    new = [row[len(row) - queries :] for row, (queries, _) in zip(slots, lens)]
    batch = inflight.Batch(
        qo,
        kv,
        indices,
        last,
        block_size,
        slot_mapping=np.concatenate(new),
        positions=np.concatenate(positions),
    )
    return batch, slots


def attention(
    q,
    keys,
    values,
    causal=True,
    window_left=None,
    soft_cap=None,
    scale=None,
    sinks=None,
    alibi_slopes=None,
    mask=None,
):
    """Outputs and LSE of one row: `q` [queries, heads, d], `keys` and `values` [keys, kv heads, d];
    its last query is at its last key's position."""
    queries, heads, dim = q.shape
    group = heads // keys.shape[1]
    out = np.zeros(q.shape)
    lse = np.full((queries, heads), -np.inf)
    at = np.arange(len(keys))
    for i in range(queries):
        position = len(keys) - queries + i
        seen = np.ones(len(keys), bool)
        if causal:
            seen &= at <= position
        if window_left is not None:
            seen &= at >= position - window_left
        if mask is not None:
            seen &= mask[i]
        for h in range(heads):
            logits = keys[seen, h // group] @ q[i, h] * (scale or dim**-0.5)
            if soft_cap:
                logits = soft_cap * np.tanh(logits / soft_cap)
            if alibi_slopes is not None:
                logits = logits + alibi_slopes[h] * (at[seen] - position)
            all_logits = logits if sinks is None else np.append(logits, sinks[h])
            if not len(all_logits):
                continue
            top = all_logits.max()
            total = np.exp(all_logits - top).sum()
            out[i, h] = np.exp(logits - top) @ values[seen, h // group] / total
            lse[i, h] = top + np.log(total)
    return out, lse
