//! The sequences of a cache manager.

use super::cache::{Sequence, State, enter, inflight_cache};
use super::ffi::{
    Result, Versioned, append, bounded, call, copied, count, lent, output, read, versioned,
};
use super::library::INFLIGHT_MAX_COUNT;
use super::request::{extra_keys_of, inflight_content};
use super::status::{Failure, inflight_error, inflight_status};
use crate::cache::{HashChain, KvCache, SeqId};
use crate::types::{Token, known};

/// What, besides its tokens, decides the content of a sequence's blocks: sequences share cached blocks
/// only where all of it is the same.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_cache_keys {
    /// `sizeof(inflight_cache_keys)`.
    pub struct_size: usize,
    /// A salt, one a tenant for example; may be NULL.
    pub salt: *const u8,
    /// Bytes of `salt`, at most 65536; likewise the next two lengths.
    pub salt_len: usize,
    /// Name of the adapter (LoRA) that the sequence runs with; may be NULL.
    pub adapter: *const u8,
    /// Bytes of `adapter`.
    pub adapter_len: usize,
    /// Contents behind placeholder tokens; may be NULL.
    pub contents: *const inflight_content,
    /// Elements of `contents`.
    pub num_contents: usize,
    /// `sizeof(inflight_content)`, where there are contents.
    pub content_size: usize,
}

versioned! {
    inflight_cache_keys_init(keys: inflight_cache_keys ..= content_size) {}
}

/// Starts a sequence without tokens and blocks, under `keys`, which are copied; NULL for none.
///
/// Outputs: `*seq`, its number until `inflight_cache_close`, never 0 and never used for another.
/// Fails, and nothing has changed: INVALID_ARGUMENT, STRUCT_SIZE, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_open(
    cache: *mut inflight_cache,
    keys: *const inflight_cache_keys,
    seq: *mut u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or the caller's to be written.
        let seq = unsafe { output("seq", seq) }?;
        // SAFETY: NULL or a cache that lives.
        let mut state = unsafe { enter(cache) }?;
        let keys = match keys.is_null() {
            true => inflight_cache_keys::initial(),
            // SAFETY: keys of the caller's.
            false => unsafe { read("keys", keys) }?,
        };
        let (salt, adapter) = ((keys.salt, keys.salt_len), (keys.adapter, keys.adapter_len));
        let contents = (keys.contents, keys.content_size, keys.num_contents);
        // SAFETY: NULL or of so many elements.
        let keys = unsafe { extra_keys_of(salt, adapter, contents) }?;
        let chain = HashChain::new(state.cache.block_size(), &keys);
        let opened = state.cache.open().to_bits();
        state.sequences.insert(opened, Sequence { tokens: Vec::new(), chain, queried: None });
        seq.write(opened);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Says which tokens a sequence has next, after those that were said before. They name the contents
/// of its blocks for the prefix cache; without one this may be left out.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT, also for more than INFLIGHT_MAX_COUNT tokens
/// in all and for INFLIGHT_NO_TOKEN among them; OUT_OF_MEMORY, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_extend(
    cache: *mut inflight_cache,
    seq: u64,
    tokens: *const u32,
    num_tokens: usize,
    error: *mut inflight_error,
) -> inflight_status {
    let body = |_: &mut KvCache, _, sequence: &mut Sequence| {
        let most = u64::from(INFLIGHT_MAX_COUNT) - sequence.tokens.len() as u64;
        // SAFETY: NULL or of so many tokens.
        let tokens: &[Token] =
            unsafe { bounded(["tokens", "num_tokens"], tokens, num_tokens, most) }?;
        known("tokens", tokens)?;
        append(&mut sequence.tokens, tokens)?;
        sequence.chain.extend(&sequence.tokens);
        Ok(())
    };
    // SAFETY: as the caller of this function promises.
    unsafe { with(cache, seq, error, body) }
}

/// Looks up the longest cached prefix of a sequence's tokens, of at most `max_tokens`: one less than
/// it has, since a step must compute the logits of the last. Nothing is held before
/// `inflight_cache_allocate`.
///
/// Outputs: `*num_cached`, its tokens, a multiple of the block size.
/// Fails: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_lookup(
    cache: *mut inflight_cache,
    seq: u64,
    max_tokens: u64,
    num_cached: *mut u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or the caller's to be written.
        let num_cached = unsafe { output("num_cached", num_cached) }?;
        // SAFETY: NULL or a cache that lives.
        let mut state = unsafe { enter(cache) }?;
        let most = count("max_tokens", max_tokens)?;
        let mut hit = std::mem::take(&mut state.hit);
        let found = state.sequence(seq).map(|(cache, _, sequence)| {
            sequence.queried = Some(sequence.tokens.len());
            cache.lookup(sequence.chain.hashes(), most, &mut hit)
        });
        state.hit = hit;
        num_cached.write(found? as u64);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Finds the blocks of a sequence's first `num_cached` tokens again, into the state's `hit`; checks
/// what allocation asks for.
fn find(state: &mut State, seq: u64, num_cached: u64, num_tokens: u64) -> Result<usize> {
    let mut hit = std::mem::take(&mut state.hit);
    hit.clear();
    let found = state.sequence(seq).and_then(|(cache, id, sequence)| {
        let cached = count("num_cached", num_cached)?;
        let num_tokens = count("num_tokens", num_tokens)?;
        if cache.is_swapped_out(id) {
            return Err(Failure::argument("seq", "is swapped out"));
        }
        if cached > 0 && !cache.table(id).is_empty() {
            return Err(Failure::argument("num_cached", "the sequence has blocks already"));
        }
        if cached % cache.block_size() != 0 || cached > num_tokens {
            let reason = format!("{cached} of {num_tokens} tokens are no whole blocks of them");
            return Err(Failure::argument("num_cached", reason));
        }
        let usable = cache.pool().num_usable();
        if cache.blocks_for(num_tokens) > usable {
            let reason = format!("{num_tokens} are more than the pool's {usable} blocks hold");
            return Err(Failure::argument("num_tokens", reason));
        }
        if cached > 0 && cache.lookup(sequence.chain.hashes(), cached, &mut hit) != cached {
            return Err(Failure::argument("num_cached", "are no longer cached"));
        }
        Ok(num_tokens)
    });
    state.hit = hit;
    found
}

/// How many blocks `inflight_cache_allocate` with the same arguments would take from the free ones.
///
/// Outputs: `*num_blocks`.
/// Fails: as `inflight_cache_allocate`, but never OUT_OF_BLOCKS.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_blocks_needed(
    cache: *mut inflight_cache,
    seq: u64,
    num_cached: u64,
    write_from: u64,
    num_tokens: u64,
    num_blocks: *mut u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or the caller's to be written.
        let num_blocks = unsafe { output("num_blocks", num_blocks) }?;
        // SAFETY: NULL or a cache that lives.
        let mut state = unsafe { enter(cache) }?;
        let num_tokens = find(&mut state, seq, num_cached, num_tokens)?;
        let from = count("write_from", write_from)?;
        let State { cache, hit, .. } = &*state;
        num_blocks.write(cache.blocks_needed(SeqId::from_bits(seq), hit, from, num_tokens) as u64);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Gives a sequence the blocks for its first `num_tokens` tokens, of which those from `write_from`
/// are about to be written. The first `num_cached` tokens, as `inflight_cache_lookup` found them,
/// come from the prefix cache, which is for sequences without blocks; 0 for all others. Blocks that
/// others share and this sequence will write are replaced by copies, see
/// `inflight_cache_take_ops`.
///
/// Outputs: `*num_blocks`, the blocks it took from the free ones; NULL if the caller does not care.
/// Fails, and nothing has changed: OUT_OF_BLOCKS (preempt a request, or try again later);
/// INVALID_ARGUMENT when the sequence is unknown or swapped out, when the prefix is not cached any
/// more or the sequence has blocks, and when the whole pool would not hold the tokens; IN_USE,
/// POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_allocate(
    cache: *mut inflight_cache,
    seq: u64,
    num_cached: u64,
    write_from: u64,
    num_tokens: u64,
    num_blocks: *mut u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        let num_blocks = match num_blocks.is_null() {
            true => None,
            // SAFETY: the caller's to be written.
            false => Some(unsafe { output("num_blocks", num_blocks) }?),
        };
        // SAFETY: NULL or a cache that lives.
        let mut state = unsafe { enter(cache) }?;
        let num_tokens = find(&mut state, seq, num_cached, num_tokens)?;
        let from = count("write_from", write_from)?;
        let State { cache, hit, sequences, .. } = &mut *state;
        let fresh = cache.table(SeqId::from_bits(seq)).is_empty();
        let taken = cache.allocate(SeqId::from_bits(seq), hit, from, num_tokens)?;
        let queried = sequences.get_mut(&seq).and_then(|sequence| sequence.queried.take());
        if let (true, Some(queried)) = (fresh, queried) {
            cache.record_lookup(queried, hit.len() * cache.block_size());
        }
        if let Some(num_blocks) = num_blocks {
            num_blocks.write(taken as u64);
        }
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Makes the sequence's full blocks among its first `num_tokens` tokens findable for others. Also
/// ahead of the step that computes them, if the sequence that finds them runs after it or in it.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_register(
    cache: *mut inflight_cache,
    seq: u64,
    num_tokens: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = |cache: &mut KvCache, id, sequence: &mut Sequence| {
        let num_tokens = count("num_tokens", num_tokens)?;
        Ok(cache.register(id, sequence.chain.hashes(), num_tokens)?)
    };
    // SAFETY: as the caller of this function promises.
    unsafe { with(cache, seq, error, body) }
}

/// Takes back `inflight_cache_register` for blocks past the first `num_tokens` tokens: the step that
/// would have computed them did not take place.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_unregister(
    cache: *mut inflight_cache,
    seq: u64,
    num_tokens: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = |cache: &mut KvCache, id, _: &mut Sequence| {
        Ok(cache.unregister(id, count("num_tokens", num_tokens)?)?)
    };
    // SAFETY: as the caller of this function promises.
    unsafe { with(cache, seq, error, body) }
}

/// The block table of a sequence, in the order of its tokens; empty while it is swapped out.
///
/// Outputs: `*blocks`, valid until the next call that changes this sequence, NULL where there are
/// none; `*num_blocks`.
/// Fails: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_table(
    cache: *mut inflight_cache,
    seq: u64,
    blocks: *mut *const u32,
    num_blocks: *mut usize,
    error: *mut inflight_error,
) -> inflight_status {
    let body = |cache: &mut KvCache, id, _: &mut Sequence| {
        // SAFETY: NULL or the caller's to be written.
        let blocks = unsafe { output("blocks", blocks) }?;
        // SAFETY: NULL or the caller's to be written.
        let num_blocks = unsafe { output("num_blocks", num_blocks) }?;
        let table = cache.table(id);
        blocks.write(lent(table).cast());
        num_blocks.write(table.len());
        Ok(())
    };
    // SAFETY: as the caller of this function promises.
    unsafe { with(cache, seq, error, body) }
}

/// Shortens a sequence to its first `num_tokens` tokens: blocks and tokens past them are forgotten.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT when it is unknown or swapped out; IN_USE,
/// POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_truncate(
    cache: *mut inflight_cache,
    seq: u64,
    num_tokens: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = |cache: &mut KvCache, id, sequence: &mut Sequence| {
        let num_tokens = count("num_tokens", num_tokens)?;
        cache.truncate(id, num_tokens)?;
        sequence.tokens.truncate(num_tokens);
        sequence.chain.truncate(num_tokens);
        Ok(())
    };
    // SAFETY: as the caller of this function promises.
    unsafe { with(cache, seq, error, body) }
}

/// Starts a sequence with the tokens and keys of `seq` that shares all its blocks. The first
/// of them to write to a shared block gets a copy of it, by `inflight_cache_allocate`.
///
/// Outputs: `*child`.
/// Fails, and nothing has changed: INVALID_ARGUMENT when it is unknown or swapped out;
/// OUT_OF_MEMORY, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_fork(
    cache: *mut inflight_cache,
    seq: u64,
    child: *mut u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or the caller's to be written.
        let child = unsafe { output("child", child) }?;
        // SAFETY: NULL or a cache that lives.
        let mut state = unsafe { enter(cache) }?;
        let (cache, id, sequence) = state.sequence(seq)?;
        let (tokens, chain) = (copied(&sequence.tokens)?, sequence.chain.clone());
        let forked = cache.fork(id)?.to_bits();
        state.sequences.insert(forked, Sequence { tokens, chain, queried: None });
        child.write(forked);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Frees the blocks of a sequence, which stays open and keeps its tokens: it gives way, and is
/// computed again later.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_release(
    cache: *mut inflight_cache,
    seq: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = |cache: &mut KvCache, id, _: &mut Sequence| Ok(cache.free(id)?);
    // SAFETY: as the caller of this function promises.
    unsafe { with(cache, seq, error, body) }
}

/// Ends a sequence and frees its blocks, which the prefix cache may still serve to others.
///
/// Fails, and nothing has changed: INVALID_ARGUMENT, IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_close(
    cache: *mut inflight_cache,
    seq: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a cache that lives.
        let mut state = unsafe { enter(cache) }?;
        let (cache, id, _) = state.sequence(seq)?;
        cache.close(id)?;
        state.sequences.remove(&seq);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}

/// Moves a sequence to the host pool and frees its device blocks. The copies are among
/// `inflight_cache_take_ops`, to be made before anybody writes to those blocks.
///
/// Fails, and nothing has changed: OUT_OF_BLOCKS of the host pool; INVALID_ARGUMENT when the
/// sequence has no blocks on the device, or more than the host pool; IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_swap_out(
    cache: *mut inflight_cache,
    seq: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = |cache: &mut KvCache, id, _: &mut Sequence| Ok(cache.swap_out(id)?);
    // SAFETY: as the caller of this function promises.
    unsafe { with(cache, seq, error, body) }
}

/// Moves a sequence back to the device pool. Its full blocks are findable again once they have been
/// registered again.
///
/// Fails, and nothing has changed: OUT_OF_BLOCKS; INVALID_ARGUMENT when the sequence is not swapped
/// out; IN_USE, POISONED.
/// Threads: one at a time. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_cache_swap_in(
    cache: *mut inflight_cache,
    seq: u64,
    error: *mut inflight_error,
) -> inflight_status {
    let body = |cache: &mut KvCache, id, _: &mut Sequence| Ok(cache.swap_in(id)?);
    // SAFETY: as the caller of this function promises.
    unsafe { with(cache, seq, error, body) }
}

/// A call about one sequence.
///
/// # Safety
/// `cache` is NULL or lives; `error` is NULL or the caller's.
unsafe fn with(
    cache: *mut inflight_cache,
    seq: u64,
    error: *mut inflight_error,
    body: impl FnOnce(&mut KvCache, SeqId, &mut Sequence) -> Result<()>,
) -> inflight_status {
    let body = || {
        // SAFETY: as the caller promises.
        let mut state = unsafe { enter(cache) }?;
        let (cache, id, sequence) = state.sequence(seq)?;
        body(cache, id, sequence)
    };
    // SAFETY: as the caller promises.
    unsafe { call(error, body) }
}
