//! The KV cache manager alone, for stacks that have their own scheduler.

use std::collections::HashMap;

use super::elements::Room;
use super::ffi::{
    Entered, Exclusive, Handle, Result, Versioned, at_most_max, call, create, flag, free, output,
    read, shared, versioned, write,
};
use super::status::{Failure, inflight_error, inflight_status};
use super::step_view::inflight_block_op;
use crate::cache::{BlockOp, CacheConfig, HashChain, KvCache, SeqId};
use crate::types::{BlockId, Token};

/// What a cache manager is made for.
///
/// Initialise it with `inflight_cache_config_init`, then set at least `num_blocks`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_cache_config {
    /// `sizeof(inflight_cache_config)`.
    pub struct_size: usize,
    /// Blocks of the device pool, the null block 0 included: 2 to `INFLIGHT_MAX_COUNT`. Each takes 12
    /// bytes of this process's memory, with `prefix_cache` at most 64.
    pub num_blocks: u64,
    /// Blocks of the host pool, to swap sequences out to, at most `INFLIGHT_MAX_COUNT`; 0 (the
    /// default) for none. Each takes 4 bytes.
    pub num_host_blocks: u64,
    /// Tokens per block; 1 to `INFLIGHT_MAX_COUNT`. 16 by default.
    pub block_size: u32,
    /// 1 (the default) if full blocks are kept for later sequences that start with the same tokens.
    pub prefix_cache: u32,
}

versioned! {
    inflight_cache_config_init(config: inflight_cache_config ..= prefix_cache) {
        block_size: 16,
        prefix_cache: 1,
    }
}

/// Decides which block of a paged KV cache holds which tokens of which sequence: block tables,
/// prefix cache, copy-on-write, swap. It moves no data and knows no scheduler: those that have an
/// `inflight_scheduler` do not need it.
///
/// The life of a sequence: `inflight_cache_open`; `inflight_cache_extend` with its tokens;
/// `inflight_cache_lookup` what is cached; `inflight_cache_allocate` with what was found;
/// `inflight_cache_register` what this step fills; `inflight_cache_take_ops` and make the copies, run
/// the step on `inflight_cache_table`; `inflight_cache_close`.
///
/// One thread at a time: a call that finds another inside returns IN_USE.
pub struct inflight_cache {
    state: Exclusive<State>,
}

impl Handle for inflight_cache {}

/// What is known of a sequence besides its blocks.
pub(super) struct Sequence {
    pub(super) tokens: Vec<Token>,
    pub(super) chain: HashChain,
    /// Tokens that looked for a cached prefix and have not been counted yet.
    pub(super) queried: Option<usize>,
}

pub(super) struct State {
    pub(super) cache: KvCache,
    pub(super) sequences: HashMap<u64, Sequence>,
    pub(super) hit: Vec<BlockId>,
    ops: Vec<BlockOp>,
}

impl State {
    /// A sequence, its handle in the library and all the rest.
    pub(super) fn sequence(&mut self, seq: u64) -> Result<(&mut KvCache, SeqId, &mut Sequence)> {
        let Self { cache, sequences, .. } = self;
        let unknown = || Failure::argument("seq", "names no open sequence");
        let sequence = sequences.get_mut(&seq).ok_or_else(unknown)?;
        Ok((cache, SeqId::from_bits(seq), sequence))
    }
}

/// Enters a cache.
///
/// # Safety
/// `cache` is NULL or one that lives during 'a.
pub(super) unsafe fn enter<'a>(cache: *const inflight_cache) -> Result<Entered<'a, State>> {
    // SAFETY: as the caller promises.
    unsafe { shared("cache", cache) }?.state.enter()
}

/// A cache manager without sequences.
///
/// Outputs: `*out`, to be freed with `inflight_cache_free`; NULL on failure.
/// Fails: INVALID_ARGUMENT naming the field of `config`; STRUCT_SIZE; OUT_OF_MEMORY when the pools'
/// records do not fit.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_create(
    config: *const inflight_cache_config,
    out: *mut *mut inflight_cache,
    error: *mut inflight_error,
) -> inflight_status {
    let make = || {
        // SAFETY: NULL or a config.
        let config = unsafe { read("config", config) }?;
        let cache = KvCache::new(CacheConfig {
            num_blocks: at_most_max("num_blocks", config.num_blocks)?,
            block_size: at_most_max("block_size", config.block_size.into())?,
            prefix_cache: flag("prefix_cache", config.prefix_cache)?,
            num_host_blocks: at_most_max("num_host_blocks", config.num_host_blocks)?,
        })?;
        let (sequences, hit, ops) = (HashMap::new(), Vec::new(), Vec::new());
        let state = State { cache, sequences, hit, ops };
        Ok(inflight_cache { state: Exclusive::new(state) })
    };
    // SAFETY: `out` and `error` are NULL or the caller's to be written.
    unsafe { create("out", out, error, make) }
}

/// Frees a cache manager and all its sequences. NULL does nothing.
///
/// Threads: any, while no other call uses it. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_free(cache: *mut inflight_cache) {
    // SAFETY: NULL, or from `inflight_cache_create` and not used any more.
    unsafe { free(cache) }
}

/// Takes the oldest copies that the device has to make before the kernels of the next step, in
/// order, at most `capacity` of them, each in `op_size` bytes, which is `sizeof(inflight_block_op)`:
/// `inflight_block_mover_run` makes them.
///
/// Outputs: `ops[0..*num_ops]`; what does not fit stays for the next call: call until fewer than
/// `capacity` come. `ops` may be NULL if `capacity` is 0.
/// Fails, and nothing is taken: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_take_ops(
    cache: *mut inflight_cache,
    ops: *mut inflight_block_op,
    op_size: usize,
    capacity: usize,
    num_ops: *mut usize,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or the caller's to be written.
        let num_ops = unsafe { output("num_ops", num_ops) }?;
        // SAFETY: NULL or a cache that lives.
        let mut state = unsafe { enter(cache) }?;
        // SAFETY: NULL or of so many operations.
        let mut room = unsafe { Room::new(["ops", "op_size"], ops, op_size, capacity) }?;
        let State { cache, ops, .. } = &mut *state;
        cache.take_ops(ops);
        let taken = ops.len().min(room.len());
        for (at, BlockOp { kind, src, dst }) in ops.drain(..taken).enumerate() {
            room.write(at, inflight_block_op { kind, src, dst });
        }
        num_ops.write(taken);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Forgets all cached prefixes: after a change of the model's weights, for example.
///
/// Fails, and nothing is forgotten: OUT_OF_BLOCKS while any sequence holds blocks, of the device
/// pool or, swapped out, of the host pool (close it, or free its blocks, first); INVALID_ARGUMENT,
/// IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_reset(
    cache: *mut inflight_cache,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a cache that lives.
        let mut state = unsafe { enter(cache) }?;
        match state.cache.reset_prefix_cache() {
            true => Ok(()),
            false => Err(held(&state.cache)),
        }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Why cached prefixes cannot be forgotten: the pools that hold blocks of sequences.
pub(super) fn held(cache: &KvCache) -> Failure {
    let device = cache.pool().num_usable() - cache.num_free();
    let host = cache.num_host_blocks() - cache.num_host_free();
    let reason = format!(
        "sequences hold {device} device blocks, and {host} host blocks swapped out: let them end first, \
         or cancel them"
    );
    Failure::new(inflight_status::OutOfBlocks, "", reason)
}

/// Counters since a cache manager was made, and its state now.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_cache_stats {
    /// `sizeof(inflight_cache_stats)`.
    pub struct_size: usize,
    /// Tokens of sequences that looked for a cached prefix and then allocated: all that they had then,
    /// as vLLM counts.
    pub queried_tokens: u64,
    /// Tokens among them that were found and adopted.
    pub hit_tokens: u64,
    /// Blocks whose known content was given up for a new one.
    pub evicted_blocks: u64,
    /// Blocks of the device pool that can be handed out at all: all but the null block.
    pub num_usable_blocks: u64,
    /// Blocks of the device pool that are free now, cached ones included.
    pub num_free_blocks: u64,
    /// Blocks of the device pool with a known content, held or free.
    pub num_cached_blocks: u64,
    /// Blocks of the host pool that are free now.
    pub num_free_host_blocks: u64,
    /// Sequences that are open now.
    pub num_sequences: u64,
}

versioned! {
    inflight_cache_stats_init(stats: inflight_cache_stats ..= num_sequences) {}
}

/// Counters and state.
///
/// Outputs: `*stats`, prepared with `inflight_cache_stats_init`.
/// Fails: INVALID_ARGUMENT, STRUCT_SIZE, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_get_stats(
    cache: *mut inflight_cache,
    stats: *mut inflight_cache_stats,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a cache that lives.
        let state = unsafe { enter(cache) }?;
        let (cache, counted) = (&state.cache, state.cache.stats());
        let now = inflight_cache_stats {
            struct_size: 0,
            queried_tokens: counted.queried_tokens,
            hit_tokens: counted.hit_tokens,
            evicted_blocks: counted.evicted_blocks,
            num_usable_blocks: cache.pool().num_usable() as u64,
            num_free_blocks: cache.num_free() as u64,
            num_cached_blocks: cache.num_cached() as u64,
            num_free_host_blocks: cache.num_host_free() as u64,
            num_sequences: state.sequences.len() as u64,
        };
        // SAFETY: NULL or the caller's to be written.
        unsafe { write("stats", stats, now) }
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Checks every invariant: each block is free or held, and as often as tables name it; the prefix
/// cache and the blocks agree. For tests: it looks at all blocks.
///
/// Fails: CORRUPT saying what does not hold, a bug in the library; INVALID_ARGUMENT, IN_USE,
/// POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_verify(
    cache: *mut inflight_cache,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a cache that lives.
        let state = unsafe { enter(cache) }?;
        Ok(state.cache.verify()?)
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
