"""Kernels against plain numpy: rows of all kinds in one step, over blocks in no order."""

import gc
import weakref

import numpy as np
import pytest
import reference
from reference import from_fp8, numbers, paged, stored

import inflight
from inflight import Attention, KVCache, Layout, Status, StepBuffer, StepLimits, Tensor, append

# A prompt, a chunk behind others, decodes, drafts, and one token over three blocks.
MIXED = [(19, 19), (16, 45), (1, 33), (1, 1), (4, 70), (1, 48)]
LIMITS = StepLimits(
    max_rows=16, max_tokens=256, max_blocks=256, max_kv_len=1024, max_mask_bytes=4096
)
TOLERANCE = {"f32": 2e-5, "f16": 2e-3, "bf16": 1.6e-2}


class Case:
    """A step with random numbers: what was in the cache before, and what is new."""

    def __init__(self, dtype="f32", lens=MIXED, heads=(8, 2), dim=64, block=16, layout=Layout.NHD):
        rng = np.random.default_rng(7)
        self.lens, self.dtype, self.heads = lens, dtype, heads
        self.batch, self.slots = paged(lens, block, 64, rng)
        tokens = sum(queries for queries, _ in lens)

        def random(*shape):
            return stored(rng.standard_normal(shape), dtype)

        self.q = random(tokens, heads[0], dim)
        self.new_k, self.new_v = random(2, tokens, heads[1], dim)
        self.k, self.v = random(2, 64, block, heads[1], dim)
        # What no row has is never read: NaN would show.
        owned = np.zeros(64 * block, bool)
        for (queries, keys), row in zip(lens, self.slots):
            owned[row[: keys - queries]] = True
        nan = stored(np.array(np.nan), dtype)
        for pool in (self.k, self.v):
            pool.reshape(-1, heads[1], dim)[~owned] = nan
        if layout == Layout.HND:
            self.k, self.v = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in (self.k, self.v))
        self.layout = layout
        self.cache = KVCache(self.k, self.v, layout)

    def flat(self, pool):
        if self.layout == Layout.HND:
            pool = pool.swapaxes(1, 2)
        return pool.reshape(-1, self.heads[1], pool.shape[-1])

    def run(self, device, lse=None, mask=None, alibi_slopes=None, sinks=None, **config):
        attention = Attention(device, LIMITS, *self.heads, self.q.shape[2], self.dtype, **config)
        with attention, StepBuffer(device, LIMITS, [attention]) as step:
            attention.plan(self.batch, 64, mask)
            step.upload(self.batch)
            append(step, self.new_k, self.new_v, self.cache)
            return attention.run(
                step, self.q, self.cache, lse=lse, alibi_slopes=alibi_slopes, sinks=sinks
            )

    def expected(self, k=None, v=None, masks=None, **config):
        k, v = (numbers(self.flat(pool)) for pool in (self.k, self.v)) if k is None else (k, v)
        first, outs, lses = 0, [], []
        for r, ((queries, _), row) in enumerate(zip(self.lens, self.slots)):
            q = numbers(self.q[first : first + queries])
            mask = None if masks is None else masks[r]
            out, lse = reference.attention(q, k[row], v[row], mask=mask, **config)
            outs.append(out)
            lses.append(lse)
            first += queries
        return np.concatenate(outs), np.concatenate(lses)


def close(got, want, dtype):
    np.testing.assert_allclose(numbers(got), want, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_mixed_step_is_numpys(device, dtype, heads, layout):
    case = Case(dtype, heads=heads, layout=layout)
    before = [case.flat(pool).copy() for pool in (case.k, case.v)]
    lse = np.empty(case.q.shape[:2], np.float32)
    out = case.run(device, lse)
    # The new tokens are where the slots say, bit by bit, and nothing else has changed.
    new = np.concatenate([row[len(row) - n :] for row, (n, _) in zip(case.slots, case.lens)])
    for pool, old, given in zip((case.k, case.v), before, (case.new_k, case.new_v)):
        old[new] = given
        assert case.flat(pool).tobytes() == old.tobytes()
    want, want_lse = case.expected()
    close(out, want, dtype)
    close(lse, want_lse, dtype)


@pytest.mark.parametrize(
    "config",
    [
        {"causal": False},
        {"window_left": 8},
        {"window_left": 0},
        {"soft_cap": 3.0},
        {"scale": 0.3},
        {"window_left": 20, "soft_cap": 1.5, "scale": 0.2},
    ],
    ids=str,
)
def test_variants_are_numpys(device, config):
    case = Case()
    close(case.run(device, **config), case.expected(**config)[0], "f32")


def test_alibi_and_sinks(device):
    case = Case()
    slopes = (2.0 ** -np.arange(1, 9)).astype(np.float32)
    sinks = np.linspace(-1, 1, 8, dtype=np.float32)
    out = case.run(device, alibi_slopes=slopes, sinks=sinks)
    close(out, case.expected(alibi_slopes=slopes, sinks=sinks)[0], "f32")


def test_a_mask_over_the_last_keys(device):
    case = Case(lens=[(4, 40), (1, 9)])
    tree = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], bool)
    bits = np.packbits(tree, axis=1, bitorder="little").tobytes()
    mask = inflight.Mask(bits, [0, 4, 4], [4, 0])
    seen = np.ones((4, 40), bool)
    seen[:, 36:] = tree
    close(case.run(device, mask=mask), case.expected(masks=[seen, None])[0], "f32")


def test_batch_invariant_mode_gives_the_same_bits(device):
    alone = Case(lens=[(1, 300)])
    among = Case(lens=[(1, 300), (30, 200), (1, 17)])
    among.k[:], among.v[:] = alone.k, alone.v
    rows = zip(among.slots[:1], alone.slots)
    for there, here in rows:
        for pool, source in ((among.k, alone.k), (among.v, alone.v)):
            among.flat(pool)[there] = alone.flat(source)[here]
    for name in ("q", "new_k", "new_v"):
        getattr(among, name)[0] = getattr(alone, name)[0]
    first = alone.run(device, fixed_split=128)[0]
    assert first.tobytes() == among.run(device, fixed_split=128)[0].tobytes()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("num_scales", [1, 2])
def test_fp8_cache(device, dtype, num_scales):
    case = Case(dtype, lens=[(40, 40), (7, 7)])
    case.k, case.v = (np.full(case.k.shape, 0x7F, np.uint8) for _ in range(2))
    scales = np.float32([0.02, 0.03])[:num_scales]
    case.cache = KVCache(case.k, case.v, k_scales=scales, v_scales=scales * 2)
    out = case.run(device, kv_dtype="fp8_e4m3")
    k = from_fp8(case.flat(case.k)) * scales[:, None]
    v = from_fp8(case.flat(case.v)) * (scales * 2)[:, None]
    rows = np.concatenate(case.slots)
    given = np.clip(numbers(case.new_k), -448 * scales[:, None], 448 * scales[:, None])
    np.testing.assert_allclose(k[rows], given, rtol=0.0625, atol=scales.max() * 2.0**-9)
    close(out, case.expected(k, v)[0], dtype)


def test_rope_rotates_keys_and_queries(device):
    case = Case()
    table = inflight.rope_table(128, 32, theta=500.0)
    angles = np.arange(128)[:, None] * 500.0 ** (-np.arange(16) / 16)
    np.testing.assert_allclose(
        table, np.concatenate([np.cos(angles), np.sin(angles)], axis=1), atol=1e-6
    )
    positions = np.concatenate([np.arange(keys - n, keys) for n, keys in case.lens])

    def rotated(x):
        cos, sin = np.cos(angles[positions])[:, None], np.sin(angles[positions])[:, None]
        a, b, rest = x[..., :16], x[..., 16:32], x[..., 32:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    wanted_q, wanted_k = rotated(case.q), rotated(case.new_k)
    with StepBuffer(device, LIMITS) as step:
        step.upload(case.batch)
        append(step, case.new_k, case.new_v, case.cache, inflight.Rope(table, case.q))
    new = np.concatenate([row[len(row) - n :] for row, (n, _) in zip(case.slots, case.lens)])
    np.testing.assert_allclose(case.flat(case.k)[new], wanted_k, atol=1e-5)
    np.testing.assert_allclose(case.q, wanted_q, atol=1e-5)


def test_strides_are_taken_as_they_are(device):
    case = Case()
    want = case.run(device)
    # Queries and outputs as slices of a fused projection, K and V interleaved in one array.
    fused = np.zeros((len(case.q), 3, 8, 64), np.float32)
    fused[:, 1] = case.q
    both = np.stack([case.k, case.v], axis=1)
    case.q, case.cache = fused[:, 1], KVCache(both[:, 0], both[:, 1])
    assert case.run(device).tobytes() == want.tobytes()


def test_merge_of_disjoint_keys(device):
    rng = np.random.default_rng(3)
    q = rng.standard_normal((5, 4, 32))
    k, v = rng.standard_normal((2, 30, 2, 32))
    parts = [(0, 11), (11, 12), (12, 30)]
    states = []
    for first, end in parts:
        out, lse = reference.attention(q, k[first:end], v[first:end], causal=False)
        states.append((out.astype(np.float32), lse.astype(np.float32)))
    want, want_lse = reference.attention(q, k, v, causal=False)
    lse = np.empty((5, 4), np.float32)
    np.testing.assert_allclose(inflight.merge(device, states, lse=lse), want, atol=1e-5)
    np.testing.assert_allclose(lse, want_lse, atol=1e-5)


def test_a_scheduler_step_is_a_batch(device):
    """Three requests through scheduler, append and attention: what one gets alone and dense."""
    rng = np.random.default_rng(5)
    table_q, table_k, table_v = rng.standard_normal((3, 100, 2, 32)).astype(np.float32)
    pool = np.full((2, 32, 4, 2, 32), np.nan, np.float32)
    cache = KVCache(pool[0], pool[1])
    prompts = {0: [3, 1, 4, 1, 5], 1: list(range(20)), 2: [3, 1, 4, 1, 5, 9, 2, 6]}
    seen = {i: list(p) for i, p in prompts.items()}
    scheduler = inflight.Scheduler(num_blocks=32, block_size=4, max_num_batched_tokens=12)
    for i, prompt in prompts.items():
        scheduler.submit(inflight.Request(i, prompt, 6))
    attention = Attention(device, LIMITS, 2, 2, 32)
    buffer = StepBuffer(device, LIMITS, [attention])
    while True:
        step = scheduler.schedule(0)
        if not step.num_rows:
            break
        attention.plan(step, 32)
        buffer.upload(step)
        tokens = step.tokens
        append(buffer, table_k[tokens], table_v[tokens], cache)
        out = attention.run(buffer, table_q[tokens], cache)
        sampled = []
        rows = step.rows[(step.rows["flags"] & inflight.RowFlag.SAMPLES) != 0]
        for request, at in zip(rows["request_id"].tolist(), step.logits_indices):
            known = seen[request]
            want, _ = reference.attention(table_q[known], table_k[known], table_v[known])
            np.testing.assert_allclose(out[at], want[-1], atol=1e-5)
            sampled.append(
                int(np.argmax(out[at].sum(axis=1) @ np.ones((2, 100)) + table_q[:, 0, 0]))
            )
            known.append(sampled[-1])
        step.commit(sampled)
    step.abandon()
    assert [len(seen[i]) - len(prompts[i]) for i in range(3)] == [6, 6, 6]
    with pytest.raises(inflight.ClosedError):
        attention.plan(step, 32)


def test_blocks_are_moved(device):
    pools, hosts = np.random.default_rng(1).standard_normal((2, 2, 2, 8, 4, 2, 16)).astype("f4")
    caches, host_caches = ([KVCache(*kv) for kv in side] for side in (pools, hosts))
    want, want_hosts = pools.copy(), hosts.copy()
    want[:, :, 3] = want[:, :, 1]
    want_hosts[:, :, 2] = want[:, :, 3]
    want[:, :, 5] = want_hosts[:, :, 7]
    kind, op = inflight.BlockOpKind, inflight.BlockOp
    ops = [op(kind.COPY, 1, 3), op(kind.SWAP_OUT, 3, 2), op(kind.SWAP_IN, 7, 5)]
    with inflight.BlockMover(device, caches, host_caches) as mover:
        mover.run(ops)
        mover.run([])
        with pytest.raises(inflight.ArgumentError):
            mover.run([op(kind.COPY, 1, 99)])
    assert pools.tobytes() == want.tobytes() and hosts.tobytes() == want_hosts.tobytes()


def test_a_mover_keeps_the_memory_that_it_moves(device):
    class Watched(np.ndarray):
        pass

    pools = np.zeros((4, 8, 4, 2, 16), np.float32).copy()
    arrays = [pool.copy().view(Watched) for pool in pools]
    gone = [weakref.ref(array) for array in arrays]
    layers, hosts = [KVCache(*arrays[:2])], [KVCache(*arrays[2:])]
    del arrays
    with inflight.BlockMover(device, layers, hosts) as mover:
        layers.clear()
        hosts.clear()
        gc.collect()
        assert all(array() is not None for array in gone)
        mover.run([inflight.BlockOp(inflight.BlockOpKind.COPY, 1, 3)])
    del mover
    gc.collect()
    assert all(array() is None for array in gone)


class OnGpu:
    """What CuPy's arrays say of themselves."""

    def __init__(self, shape, typestr="<f4", strides=None, read_only=False, address=64):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "strides": strides,
            "data": (address, read_only),
            "version": 3,
        }

    def __len__(self):
        return self.__cuda_array_interface__["shape"][0]


def misplaced(call, field):
    with pytest.raises(inflight.ArgumentError) as failed:
        call()
    assert failed.value.field == field, failed.value
    return failed.value.message


@pytest.fixture
def gpu():
    """A device that says it is a GPU: what is refused is refused before the library sees it."""
    with inflight.Device.cpu(threads=1) as device:
        device._held().place = (inflight.DeviceKind.CUDA, 0)
        yield device


def test_a_gpu_is_not_given_memory_of_the_processor(gpu):
    case = Case()
    attention, step = Attention(gpu, LIMITS, 8, 2, 64), StepBuffer(gpu, LIMITS)
    lse = np.zeros(case.q.shape[:2], np.float32)
    q, k, v = (Foreign(array, True) for array in (case.q, case.new_k, case.new_v))
    misplaced(lambda: attention.run(step, case.q, case.cache), "o")
    misplaced(lambda: attention.run(step, case.q, case.cache, case.q), "q")
    misplaced(lambda: attention.run(step, q, case.cache, case.q), "o")
    misplaced(lambda: attention.run(step, q, case.cache, q), "cache")
    misplaced(lambda: append(step, case.new_k, v, case.cache), "k")
    misplaced(lambda: append(step, k, v, case.cache), "cache")
    misplaced(lambda: inflight.merge(gpu, [(q, lse)], q), "states")
    misplaced(lambda: inflight.merge(gpu, [(case.q, lse)]), "o")
    misplaced(lambda: inflight.BlockMover(gpu, [case.cache]), "device_caches")
    seen = KVCache(Foreign(case.k, True), Foreign(case.v, True), device=gpu)
    misplaced(lambda: attention.run(step, q, seen, q, lse=lse), "lse")
    misplaced(lambda: attention.run(step, q, seen, q, sinks=lse[0]), "sinks")
    misplaced(lambda: append(step, k, v, seen, inflight.Rope(lse)), "cos_sin")


def test_a_processor_is_not_given_memory_of_a_gpu(device):
    case = Case()
    attention, step = Attention(device, LIMITS, 8, 2, 64), StepBuffer(device, LIMITS)
    run = attention.run
    misplaced(lambda: run(step, case.q, case.cache, lse=OnGpu(case.q.shape[:2])), "lse")
    misplaced(lambda: run(step, case.q, case.cache, sinks=OnGpu((8,))), "sinks")
    rope = inflight.Rope(OnGpu((128, 32)))
    misplaced(lambda: append(step, case.new_k, case.new_v, case.cache, rope), "cos_sin")
    scales = {"k_scales": OnGpu((1,)), "v_scales": OnGpu((1,))}
    misplaced(lambda: KVCache(case.k, case.v, **scales), "k_scales")
    states = [(case.q, OnGpu(case.q.shape[:2]))]
    misplaced(lambda: inflight.merge(device, states), "states")


def test_flat_arrays_of_a_gpu_are_looked_at(gpu):
    case = Case()
    attention, step = Attention(gpu, LIMITS, 8, 2, 64), StepBuffer(gpu, LIMITS)
    q = Foreign(case.q, True)
    cache = KVCache(Foreign(case.k, True), Foreign(case.v, True), device=gpu)
    shape = case.q.shape[:2]
    for lse, why in (
        (OnGpu(shape, "<f8"), "float32"),
        (OnGpu(shape[::-1]), "shape"),
        (OnGpu(shape, strides=(4, 4 * shape[0])), "contiguous"),
        (OnGpu(shape, read_only=True), "read-only"),
    ):
        assert why in misplaced(lambda: attention.run(step, q, cache, q, lse=lse), "lse")


def test_scales_are_as_many_as_are_said(device):
    case, scales = Case(), np.ones(2, np.float32)
    k, v = (np.zeros(case.k.shape, np.uint8) for _ in range(2))
    misplaced(lambda: KVCache(k, v, k_scales=scales), "v_scales")
    misplaced(lambda: KVCache(k, v, v_scales=scales), "k_scales")
    misplaced(lambda: KVCache(k, v, k_scales=scales, v_scales=scales[:1]), "v_scales")
    address = scales.ctypes.data
    misplaced(lambda: KVCache(k, v, k_scales=address, v_scales=address), "num_scales")
    cache = KVCache(k, v, k_scales=address, v_scales=address, num_scales=2)
    for side in (cache.struct.k, cache.struct.v):
        assert (side.scales, side.scale_head_stride) == (address, 1)
    misplaced(
        lambda: KVCache(k, v, k_scales=address, v_scales=address, num_scales=3), "num_scales"
    )


def test_elements_that_kernels_cannot_read_are_refused(device):
    case = Case()
    attention, step = Attention(device, LIMITS, 8, 2, 64), StepBuffer(device, LIMITS)
    swapped = case.q.astype(case.q.dtype.newbyteorder())
    misplaced(lambda: attention.run(step, swapped, case.cache), "q")
    packed = np.zeros(case.q.shape[:2], [("x", "f4", 64), ("pad", "u1")])["x"]
    misplaced(lambda: attention.run(step, packed, case.cache), "q")
    misplaced(lambda: KVCache(case.k, case.v.astype(case.v.dtype.newbyteorder())), "v")
    misplaced(lambda: Tensor(Foreign(case.q, True), "f32"), "array")


class Foreign:
    """An exporter that is no numpy array; `versioned` says how old its protocol is."""

    def __init__(self, array, versioned):
        self.array, self.versioned, self.taken = array, versioned, 0

    def __dlpack__(self, **given):
        self.taken += 1
        if not self.versioned and given:
            raise TypeError("unexpected keyword argument")
        return self.array.__dlpack__(**given)


@pytest.mark.parametrize("versioned", [True, False])
def test_exporters_of_dlpack_go_in(device, versioned):
    case = Case()
    want = case.run(device)
    out = np.zeros_like(want)
    q, o = Foreign(case.q, versioned), Foreign(out, versioned)
    pools = [Foreign(pool, versioned) for pool in (case.k, case.v)]
    cache = KVCache(*pools, device=device)
    with (
        Attention(device, LIMITS, 8, 2, 64) as attention,
        StepBuffer(device, LIMITS, [attention]) as step,
    ):
        attention.plan(case.batch, 64)
        step.upload(case.batch)
        append(step, Foreign(case.new_k, versioned), case.new_v, cache)
        assert attention.run(step, q, cache, o) is o
    assert out.tobytes() == want.tobytes()
    assert q.taken == o.taken == (1 if versioned else 2)  # asked for a version first


def test_dlpack_goes_out():
    class Watched(np.ndarray):
        pass

    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).view(Watched)
    gone = weakref.ref(array)
    seen = np.from_dlpack(Tensor(array))
    assert seen.ctypes.data == array.ctypes.data and (seen == np.asarray(array)).all()
    unused = Tensor(array).__dlpack__(max_version=(1, 1))
    del array
    gc.collect()
    assert gone() is not None and seen[1, 2, 3] == 23
    del seen, unused
    gc.collect()
    assert gone() is None  # the consumer's deleter released it, and the unused capsule's too
    read_only = np.zeros((1, 1, 8), np.float16)
    read_only.flags.writeable = False
    assert not np.from_dlpack(Tensor(read_only)).flags.writeable
    with pytest.raises(BufferError):
        Tensor(read_only).__dlpack__()


def test_a_consumer_that_refuses_says_so():
    class Watched(np.ndarray):
        pass

    bits = np.zeros((2, 3, 4), np.uint16).view(Watched)
    gone = weakref.ref(bits)
    with pytest.raises((RuntimeError, BufferError), match="dtype"):  # numpy has no bfloat16
        np.from_dlpack(Tensor(bits, "bf16"))
    del bits
    gc.collect()
    assert gone() is None


def test_bf16_goes_through_a_capsule(device):
    case = Case("bf16")
    want = case.run(device)
    assert case.run(device).tobytes() == want.tobytes()
    case.q = Foreign(Tensor(case.q, "bf16"), True)
    with (
        Attention(device, LIMITS, 8, 2, 64, "bf16") as attention,
        StepBuffer(device, LIMITS, [attention]) as step,
    ):
        attention.plan(case.batch, 64)
        step.upload(case.batch)
        out = attention.run(step, case.q, case.cache, np.empty_like(want))
    assert out.tobytes() == want.tobytes()


def test_mistakes_are_named(device):
    case = Case()
    with (
        Attention(device, LIMITS, 8, 2, 64) as attention,
        StepBuffer(device, LIMITS, [attention]) as step,
    ):

        def refused(call, field):
            with pytest.raises(inflight.ArgumentError) as failed:
                call()
            assert failed.value.status is Status.INVALID_ARGUMENT
            assert failed.value.field.split(".")[0] == field, failed.value

        run = attention.run
        refused(lambda: step.upload(case.batch), "attentions")
        attention.plan(case.batch, 64)
        step.upload(case.batch)
        q, cache = case.q, case.cache
        refused(lambda: run(step, q[:, :4], cache), "q")
        refused(lambda: run(step, q[0], cache), "q")
        refused(lambda: run(step, q[..., ::2], cache), "q")
        refused(lambda: run(step, q.astype(np.float64), cache), "dtype")
        refused(lambda: run(step, q, cache, lse=np.empty(3, np.float32)), "lse")
        refused(lambda: run(step, q, cache, sinks=np.empty(3, np.float32)), "sinks")
        refused(lambda: append(step, case.new_k[:, :1], case.new_v, cache), "k")
        frozen = q.copy()
        frozen.flags.writeable = False
        refused(lambda: run(step, q, cache, out=frozen), "o")
        refused(lambda: KVCache(case.k, case.v[:3]), "v")
        refused(lambda: inflight.Batch([0, 1], [0, 1, 2], [1, 2], [1], 16), "kv_indptr")
        refused(
            lambda: attention.plan(inflight.Batch([0, 1], [0, 1], [99], [1], 16), 64), "kv_indices"
        )
        big = inflight.Batch([0, 999], [0, 1], [1], [1], 16)
        refused(lambda: attention.plan(big, 64), "limits")
    refused(lambda: Attention(device, LIMITS, 7, 2, 64), "num_q_heads")
    refused(lambda: Attention(device, LIMITS, 8, 2, 64, "f32", scale=float("nan")), "scale")
    refused(lambda: Attention(device, StepLimits(0, 1, 1, 1), 8, 2, 64), "max_rows")
    heads = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    assert Attention.workspace_size(device, LIMITS, **heads) == 0
    refused(lambda: Attention.workspace_size(device, StepLimits(0, 1, 1, 1), **heads), "max_rows")

    class OnGpu:
        __cuda_array_interface__ = {"data": (256, False), "shape": (4, 2), "typestr": "<f4"}

    class Apart(OnGpu):
        __cuda_array_interface__ = {**OnGpu.__cuda_array_interface__, "strides": (32, 4)}

    assert inflight.arrays.device_memory(OnGpu(), "workspace")[:2] == (256, 32)
    for workspace in (OnGpu(), Apart(), (256, 32), (-1, 32), q):
        refused(lambda: Attention(device, LIMITS, **heads, workspace=workspace), "workspace")
    for closed in (lambda: run(step, q, cache), lambda: step.upload(case.batch)):
        with pytest.raises(inflight.ClosedError):
            closed()
    step.close()
    attention.close()


def test_a_device_may_be_closed_first():
    device = inflight.Device.cpu(threads=1, isa=inflight.Isa.PORTABLE)
    info = device.info()
    assert (info.name, info.isa, info.threads) == ("portable", inflight.Isa.PORTABLE, 1)
    assert info.uuid == bytes(16)
    case = Case()
    attention = Attention(device, LIMITS, 8, 2, 64)
    step = StepBuffer(device, LIMITS, [attention])
    device.close()
    attention.plan(case.batch, 64)
    step.upload(case.batch)
    append(step, case.new_k, case.new_v, case.cache)
    close(attention.run(step, case.q, case.cache), case.expected()[0], "f32")
