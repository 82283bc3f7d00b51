import pytest

import inflight
from inflight import BlockOpKind, Cache, Content, Status
from inflight import cache as cache_module


def start(cache, tokens, **keys):
    """A sequence with blocks for its tokens, and what of them was cached."""
    seq = cache.open(**keys)
    cache.extend(seq, tokens)
    cached = cache.lookup(seq, len(tokens) - 1)
    needed = cache.blocks_needed(seq, len(tokens), cached)
    assert cache.allocate(seq, len(tokens), cached) == needed
    cache.register(seq, len(tokens))
    return seq, cached


def test_a_shared_prefix_is_found():
    with Cache(num_blocks=32, block_size=4) as cache:
        prompt = list(range(18))
        first, cached = start(cache, prompt)
        assert cached == 0
        second, cached = start(cache, prompt[:13] + [99] * 4)
        assert cached == 12
        tables = [cache.table(seq).tolist() for seq in (first, second)]
        assert tables[0][:3] == tables[1][:3] and tables[0][3] != tables[1][3]
        assert 0 not in tables[0] + tables[1] and len(tables[0]) == 5
        cache.close_sequence(first)
        cache.close_sequence(second)
        _, cached = start(cache, prompt)  # free blocks still serve
        assert cached == 16
        stats = cache.stats()
        assert (stats.queried_tokens, stats.hit_tokens) == (18 + 17 + 18, 12 + 16)
        assert stats.num_sequences == 1 and stats.num_usable_blocks == 31
        cache.verify()


def test_keys_keep_prefixes_apart():
    with Cache(num_blocks=64, block_size=4) as cache:
        prompt = list(range(9))
        variants = [
            {},
            {"salt": b"tenant"},
            {"adapter": "lora"},
            {"contents": [Content(b"image", 2, 3)]},
            {"contents": [Content(b"other", 2, 3)]},
        ]
        for keys in variants:
            assert start(cache, prompt, **keys)[1] == 0
        for keys in variants:
            assert start(cache, prompt, **keys)[1] == 8


def test_a_fork_copies_what_it_writes():
    with Cache(num_blocks=16, block_size=4) as cache:
        seq, _ = start(cache, list(range(6)))
        child = cache.fork(seq)
        assert cache.table(child).tolist() == cache.table(seq).tolist()
        cache.extend(child, [7])
        assert cache.allocate(child, 7, write_from=6) == 1
        mine, its = cache.table(seq).tolist(), cache.table(child).tolist()
        assert cache.take_ops() == [(BlockOpKind.COPY, mine[1], its[1])]
        assert mine[0] == its[0] and cache.take_ops() == []
        cache.truncate(child, 4)
        assert cache.table(child).tolist() == mine[:1]
        cache.verify()


def test_sequences_swap():
    with Cache(num_blocks=16, block_size=4, num_host_blocks=4) as cache:
        seq, _ = start(cache, list(range(10)))
        blocks = cache.table(seq).tolist()
        cache.swap_out(seq)
        ops = cache.take_ops()
        assert [op.kind for op in ops] == [BlockOpKind.SWAP_OUT] * 3
        assert [op.src for op in ops] == blocks and len(cache.table(seq)) == 0
        cache.swap_in(seq)
        back = cache.take_ops()
        assert [op.kind for op in back] == [BlockOpKind.SWAP_IN] * 3
        assert [op.src for op in back] == [op.dst for op in ops]
        cache.release(seq)
        assert cache.stats().num_free_blocks == 15
        assert cache.reset() is True


def test_mistakes_and_want_are_told_apart():
    cache = Cache(num_blocks=4, block_size=4)
    seq, _ = start(cache, list(range(8)))
    other = cache.open()
    cache.extend(other, range(8))
    with pytest.raises(inflight.CapacityError) as failed:
        cache.allocate(other, 8)
    assert failed.value.status is Status.OUT_OF_BLOCKS
    with pytest.raises(inflight.ArgumentError):
        cache.allocate(other, 400)
    with pytest.raises(inflight.ArgumentError):
        cache.table(12345)
    with pytest.raises(inflight.ArgumentError):
        cache.open(contents=[Content(b"image", -1, 3)])
    with pytest.raises(inflight.ArgumentError) as failed:
        Cache(num_blocks=1)
    assert failed.value.field.endswith("num_blocks")
    assert cache.reset() is False
    table = cache.table(seq)
    cache.close()
    cache.close()
    assert len(table) == 2  # a copy
    with pytest.raises(inflight.ClosedError):
        cache.table(seq)


def test_no_copy_is_lost(monkeypatch):
    """Not even where a call fails between two that take some."""
    with Cache(num_blocks=600, num_host_blocks=600, block_size=1) as cache:
        seq, _ = start(cache, list(range(500)))
        cache.swap_out(seq)
        take, calls = cache_module.lib.inflight_cache_take_ops, []

        def fails(*arguments):
            calls.append(1)
            return 109 if len(calls) == 2 else take(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(cache_module.lib, "inflight_cache_take_ops", fails)
            with pytest.raises(inflight.ArgumentError):
                cache.take_ops()
        ops = cache.take_ops()
        assert len(ops) == len({op.src for op in ops}) == 500 and cache.take_ops() == []
