//! The processor's kernels on memory that is given by addresses, as kernels of every device are.

use std::ptr::with_exposed_provenance_mut;

use super::append::check_rotary_dim;
use super::lanes::check_aligned;
use super::{
    Append, Attention, AttentionArgs, Rope, State, StepBuffer, append, merge, move_blocks,
};
use crate::cache::BlockOp;
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use crate::kernels::{self, DeviceCache, DeviceTensor, KvCache, KvScales, TensorMut, TensorRef};

impl DeviceTensor {
    /// # Safety
    /// As its maker promised, it is memory of the process; nothing writes it during 'a.
    unsafe fn view<'a>(&self, field: &'static str) -> Result<TensorRef<'a>> {
        let data = with_exposed_provenance_mut::<u8>(self.address() as usize);
        check_aligned(field, data, self.dtype())?;
        // SAFETY: as the caller promises.
        Ok(unsafe { TensorRef::from_raw(data, self.dtype(), self.shape()) })
    }

    /// # Safety
    /// As its maker promised, it is memory of the process; nothing else uses it during 'a.
    unsafe fn view_mut<'a>(&self, field: &'static str) -> Result<TensorMut<'a>> {
        let data = with_exposed_provenance_mut::<u8>(self.address() as usize);
        check_aligned(field, data, self.dtype())?;
        // SAFETY: as the caller promises.
        Ok(unsafe { TensorMut::from_raw(data, self.dtype(), self.shape()) })
    }
}

impl DeviceCache {
    /// # Safety
    /// As its maker promised, it is memory of the process; nothing else uses it during 'a.
    unsafe fn view<'a>(&self) -> Result<KvCache<'a>> {
        let [k, v] = [self.k, self.v].map(|at| with_exposed_provenance_mut(at as usize));
        // SAFETY: as the caller promises.
        unsafe { KvCache::from_raw(k, v, *self.layout()) }
    }

    /// # Safety
    /// As its maker promised, its scales are memory of the process, which nothing writes during 'a.
    unsafe fn scale_slices<'a>(&self) -> Result<KvScales<'a>> {
        let Some(scales) = self.scales else { return Ok(KvScales::NONE) };
        let len = if scales.per_head { self.layout().num_heads } else { 1 };
        // SAFETY: as the caller promises.
        let of = |field, address| unsafe { numbers(field, address, len) };
        Ok(KvScales { k: of("scales.k", scales.k)?, v: of("scales.v", scales.v)? })
    }
}

/// Where `len` numbers begin; none may be nowhere.
fn start(field: &'static str, address: u64, len: usize) -> Result<*mut f32> {
    if len == 0 {
        return Ok(std::ptr::dangling_mut());
    }
    if address == 0 || !address.is_multiple_of(4) {
        return Err(Error::argument(field, "is null, or not at a multiple of 4 bytes"));
    }
    Ok(with_exposed_provenance_mut(address as usize))
}

/// # Safety
/// At `address` are `len` numbers that nothing writes during 'a.
unsafe fn numbers<'a>(field: &'static str, address: u64, len: usize) -> Result<&'a [f32]> {
    let start = start(field, address, len)?;
    // SAFETY: as the caller promises; `start` found it aligned.
    Ok(unsafe { std::slice::from_raw_parts(start, len) })
}

/// # Safety
/// At `address` are `len` numbers that nothing else uses during 'a.
unsafe fn numbers_mut<'a>(field: &'static str, address: u64, len: usize) -> Result<&'a mut [f32]> {
    let start = start(field, address, len)?;
    // SAFETY: as the caller promises; `start` found it aligned.
    Ok(unsafe { std::slice::from_raw_parts_mut(start, len) })
}

impl Attention {
    /// [`run`](Self::run) on addresses.
    ///
    /// # Safety
    /// As `kernels::Attention::run`.
    pub(crate) unsafe fn run_at(
        &self,
        step: &StepBuffer,
        group: usize,
        args: &kernels::AttentionArgs,
    ) -> Result<()> {
        // First: lengths below are those of the plan.
        self.planned().check_uploaded(step.uploaded(), group)?;
        let heads = self.config().num_q_heads;
        let rows = self.planned().num_tokens * heads;
        let of = |field, address: u64| match address {
            0 => Ok(None),
            // SAFETY: the caller's are as many as the queries have heads.
            address => unsafe { numbers(field, address, heads) }.map(Some),
        };
        let lse = match args.lse {
            0 => None,
            // SAFETY: the caller's LSE has a number per token and head.
            address => Some(unsafe { numbers_mut("lse", address, rows) }?),
        };
        // SAFETY: as the maker of the cache promised.
        let cache = unsafe { args.cache.view() }?;
        let args = AttentionArgs {
            // SAFETY: as its maker promised.
            q: unsafe { args.q.view("q") }?,
            cache: &cache,
            // SAFETY: as the maker of the cache promised.
            scales: unsafe { args.cache.scale_slices() }?,
            // SAFETY: as its maker promised.
            o: unsafe { args.o.view_mut("o") }?,
            lse,
            alibi_slopes: of("alibi_slopes", args.alibi_slopes)?,
            sinks: of("sinks", args.sinks)?,
        };
        self.run(step, group, args)
    }
}

impl StepBuffer {
    /// [`append`] of the step's new tokens, on addresses.
    ///
    /// # Safety
    /// As `kernels::StepBuffer::append`.
    pub(crate) unsafe fn append_at(&self, cpu: &Cpu, args: &kernels::AppendArgs) -> Result<()> {
        self.uploaded().check_append(args.cache.layout(), args.rope.is_some())?;
        let rope = match args.rope {
            None => None,
            Some(kernels::Rope { cos_sin, max_position, rotary_dim, pairs, q }) => {
                // Before the table's length is computed from it.
                check_rotary_dim(rotary_dim, args.cache.layout().head_dim)?;
                let len = max_position as usize * rotary_dim;
                Some(Rope {
                    positions: self.batch().positions(),
                    // SAFETY: the caller's table has so many rows.
                    cos_sin: unsafe { numbers("cos_sin", cos_sin, len) }?,
                    rotary_dim,
                    pairs,
                    // SAFETY: as its maker promised.
                    q: q.map(|q| unsafe { q.view_mut("q") }).transpose()?,
                })
            }
        };
        // SAFETY: as the maker of the cache promised.
        let mut cache = unsafe { args.cache.view() }?;
        let new = Append {
            // SAFETY: as its maker promised.
            k: unsafe { args.k.view("k") }?,
            // SAFETY: as its maker promised.
            v: unsafe { args.v.view("v") }?,
            slot_mapping: self.batch().slot_mapping(),
            // SAFETY: as the maker of the cache promised.
            scales: unsafe { args.cache.scale_slices() }?,
            rope,
        };
        append(cpu, &mut cache, new)
    }
}

/// [`merge`] on addresses.
///
/// # Safety
/// As `kernels::Backend::merge`.
pub(crate) unsafe fn merge_at(
    cpu: &Cpu,
    states: &[kernels::State],
    o: &DeviceTensor,
    lse: u64,
) -> Result<()> {
    let rows = o.shape().tokens.checked_mul(o.shape().heads);
    let rows = rows.ok_or_else(|| Error::argument("o", "its rows do not fit the memory"))?;
    let of = |state: &kernels::State| {
        Ok(State {
            // SAFETY: as its maker promised.
            o: unsafe { state.o.view("states") }?,
            // SAFETY: the caller's LSE has a number per token and head.
            lse: unsafe { numbers("states", state.lse, rows) }?,
        })
    };
    let states = states.iter().map(of).collect::<Result<Vec<_>>>()?;
    let lse = match lse {
        0 => None,
        // SAFETY: as above.
        address => Some(unsafe { numbers_mut("lse", address, rows) }?),
    };
    // SAFETY: as its maker promised.
    merge(cpu, &states, unsafe { o.view_mut("o") }?, lse)
}

/// [`move_blocks`] on addresses.
pub(crate) fn move_blocks_at(
    cpu: &Cpu,
    ops: &[BlockOp],
    device: &[DeviceCache],
    host: &[DeviceCache],
) -> Result<()> {
    let views = |caches: &[DeviceCache]| {
        // SAFETY: as the makers of the caches promised.
        caches.iter().map(|cache| unsafe { cache.view() }).collect::<Result<Vec<KvCache<'_>>>>()
    };
    move_blocks(cpu, ops, &mut views(device)?, &mut views(host)?)
}
