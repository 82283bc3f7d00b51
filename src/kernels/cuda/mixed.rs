//! Rows of both kinds in one launch: whether, and how many thread blocks each kind gets.
//!
//! Prefill is bound by products, decode by reading the cache. Two launches are bound by one and
//! then by the other; in one launch a multiprocessor can have a block of each kind and do both at
//! once (POD-Attention, Kamath et al., 2024).
//!
//! Nothing here has been measured on a GPU: the rule follows from a model, and its constants are
//! where a measurement would enter.

#![forbid(unsafe_code)]

use std::ffi::CString;

use super::sides::{Side, Sides};
use crate::device::cuda::{Kernel, Kernels, Launch};
use crate::error::{Error, Result};

/// Whether rows with few queries and other rows are computed by one launch where a step has both.
///
/// There is a kernel for both up to head dimension 128, and at most 16 query heads a KV head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fusion {
    /// Where at least two thread blocks fit a multiprocessor (with 16-bit caches of head dimension
    /// 128 on sm_90, not on sm_80), and neither kind is less than a sixteenth of the step's
    /// predicted cost.
    #[default]
    Auto,
    /// In every step that has both, and in every captured graph.
    Always,
    /// In none. The memory for split tiles is smaller then: see [`Attention`](super::Attention).
    Never,
}

/// A kind's least part of a step's predicted cost, as a divisor: with less, two launches. By the
/// model below one launch then saves at most 3 % of the time, which a larger kernel can cost.
const LEAST_PART: u64 = 16;
/// Where the costs of both kinds are at most in this ratio each has half of the blocks, so that
/// every multiprocessor has one of each. At the ratio itself that is the faster way if a single
/// block gets three quarters of what two of its kind get out of a multiprocessor.
const EVEN: (u64, u64) = (3, 2);
/// Blocks that share what bounds them take so many times as long as next to a block of the other
/// kind.
const SHARED: u64 = 2;

/// The kernel for rows of both kinds.
#[derive(Debug)]
pub(super) struct Mixed {
    pub(super) plain: Kernel,
    pub(super) general: Kernel,
    /// With all blocks that plans for it use.
    pub(super) launch: Launch,
    /// The same with blocks enough for any two plans.
    pub(super) any: Launch,
    /// Whether every captured graph is to have one launch.
    pub(super) always: bool,
}

impl Mixed {
    /// Loads the kernel; `None` where it is never to run.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming `fusion` where it is [`Fusion::Always`] and there is no
    /// such kernel; what loading kernels refuses.
    pub(super) fn new(
        kernels: &Kernels,
        fusion: Fusion,
        sides: &Sides,
        decode: &Side,
        prefill: &Side,
    ) -> Result<Option<Self>> {
        let always = fusion == Fusion::Always;
        if fusion == Fusion::Never {
            return Ok(None);
        }
        let Some((block, file)) = sides.mixed() else {
            let config = sides.config;
            let reason = format!(
                "there is no kernel for rows of both kinds with head_dim {} and {} query heads per KV head",
                config.head_dim,
                config.group_size()
            );
            return if always { Err(Error::argument("fusion", reason)) } else { Ok(None) };
        };
        let load = |suffix: &str| {
            let name = CString::new(format!("inflight_{file}{suffix}")).expect("no zero in it");
            kernels.prepare(&file, &name, block.shared)
        };
        let (plain, general) = (load("")?, load("_general")?);
        let multiprocessors = kernels.cuda().info().multiprocessors;
        let fit = [&plain, &general]
            .map(|kernel| kernel.blocks_per_multiprocessor(block.threads, block.shared));
        let [plain_fit, general_fit] = fit;
        let shares = plain_fit?.min(general_fit?).max(1) * multiprocessors;
        // Plans made for it fit the launches of either side too.
        let shares = shares.min(decode.config.shares).min(prefill.config.shares);
        if shares < 2 || (!always && shares < 2 * multiprocessors) {
            return Ok(None);
        }
        let launch = |blocks| Launch::new(blocks, block.threads, block.shared).dependent();
        let any = launch(decode.config.shares + prefill.config.shares);
        Ok(Some(Self { plain, general, launch: launch(shares), any, always }))
    }

    /// The shares of decode and prefill for one launch; `None` for two launches. Costs are what
    /// the plans predict: bytes that a multiprocessor reads in the same time.
    pub(super) fn divide(&self, decode: u64, prefill: u64) -> Option<[u32; 2]> {
        divide(self.launch.grid.x, decode, prefill, self.always)
    }
}

/// The rule of [`Mixed::divide`], for `blocks` thread blocks in all, two per multiprocessor.
///
/// The model: a block next to one of the other kind has its multiprocessor's bandwidth, or products,
/// to itself; next to one of its own kind it takes twice as long. Let the costs be `large` and
/// `small`, a time each with a device to itself. Two launches take `large + small`. With half of the
/// blocks each, one launch takes `large`, and up to a third more where a single block cannot use all
/// of what bounds it. Where `large` has more than half, some multiprocessors have two blocks of it,
/// which are the last to end, after `2 * large / blocks of large`; all end together where its
/// blocks are to the others as `2 * large : small`, after `large + small / 2`.
fn divide(blocks: u32, decode: u64, prefill: u64, always: bool) -> Option<[u32; 2]> {
    let (small, large) = (decode.min(prefill), decode.max(prefill));
    if small == 0 || blocks < 2 {
        return None;
    }
    let least = (u128::from(small) + u128::from(large)) / u128::from(LEAST_PART);
    if u128::from(small) < least && !always {
        return None;
    }
    let (small, large) = (u128::from(small), u128::from(large));
    let even = large * u128::from(EVEN.1) <= small * u128::from(EVEN.0);
    let weighed = if even { small } else { large * u128::from(SHARED) };
    // At most `blocks`.
    let most = (u128::from(blocks) * weighed / (weighed + small)) as u32;
    let most = most.clamp(1, blocks - 1);
    Some(if decode > prefill { [most, blocks - most] } else { [blocks - most, most] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_divided_by_costs() {
        let of = |decode, prefill| divide(264, decode, prefill, false);
        // One of each on every multiprocessor while costs are alike.
        for (decode, prefill) in [(1000, 1000), (1000, 1500), (1500, 1000)] {
            assert_eq!(of(decode, prefill), Some([132, 132]), "{decode} {prefill}");
        }
        // 2 * 3 : 1.
        assert_eq!(of(1000, 3000), Some([38, 226]));
        assert_eq!(of(3000, 1000), Some([226, 38]));
        assert_eq!(of(1000, 15_000), Some([9, 255]));
    }

    #[test]
    fn what_hardly_costs_has_a_launch_of_its_own() {
        let of = |decode, prefill| divide(264, decode, prefill, false);
        assert!(of(1000, 15_000).is_some() && of(15_000, 1000).is_some());
        assert_eq!(of(1000, 15_100), None);
        assert_eq!(of(15_100, 1000), None);
        assert_eq!(divide(264, 1000, 1_000_000, true), Some([1, 263]));
        for always in [false, true] {
            assert_eq!(divide(264, 0, 1000, always), None);
            assert_eq!(divide(264, 1000, 0, always), None);
            assert_eq!(divide(1, 1000, 1000, always), None);
        }
    }

    #[test]
    fn every_division_uses_all_blocks_and_leaves_each_kind_one() {
        for blocks in [2, 3, 8, 264] {
            for shift in 0..64 {
                for (decode, prefill) in [(1, 1 << shift), (u64::MAX >> shift, u64::MAX)] {
                    let [a, b] = divide(blocks, decode, prefill, true).expect("both have rows");
                    assert!(a >= 1 && b >= 1 && a + b == blocks, "{decode} {prefill}: {a} {b}");
                }
            }
        }
    }

    /// By the model, where the larger kind has more than half: that a single block of it could use
    /// all of a multiprocessor is not counted on.
    #[test]
    fn no_other_division_is_sooner_done() {
        let half = 132;
        for (small, large) in [(1000, 2000), (1000, 5000), (1000, 12_000), (1000, 1600)] {
            let [few, most] = divide(2 * half, small, large, false).expect("both cost enough");
            assert_eq!(divide(2 * half, large, small, false), Some([most, few]));
            let [small, large] = [small, large].map(|cost| cost as f64);
            let time = |most: u32| {
                let few = 2 * half - most;
                (2.0 * large / f64::from(most)).max(small / f64::from(few))
            };
            let best = (half + 1..2 * half).map(time).fold(f64::INFINITY, f64::min);
            assert!(time(most) <= best * 1.01, "{large}: {most} {} {best}", time(most));
            let two_launches = (small + large) / f64::from(half);
            assert!(time(most) < two_launches, "{large}: two launches are as good");
        }
    }
}
