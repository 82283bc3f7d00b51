//! Rotary position embedding.

use super::ffi::{Result, Versioned, array_mut, at_most_max, call, flag, read, versioned};
use super::status::{Failure, inflight_error, inflight_status};
use super::tensor::inflight_tensor;
use crate::kernels::rope::{RopeConfig, RopePairs, RopeScaling};

/// Pairs are elements `i` and `i + rotary_dim / 2` of a head: GPT-NeoX, Llama as Hugging Face stores
/// it.
pub const INFLIGHT_ROPE_PAIRS_HALF: u32 = 1;
/// Pairs are elements `2 i` and `2 i + 1`: GPT-J, Llama as its authors stored it.
pub const INFLIGHT_ROPE_PAIRS_INTERLEAVED: u32 = 2;

/// Rotation of new keys before they are stored, and of queries in place; by the positions of the
/// step. Computed in f32 and rounded once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_rope {
    /// `sizeof(inflight_rope)`.
    pub struct_size: usize,
    /// f32 `[max_position, rotary_dim]` in the device's memory: the cosines of a position's
    /// `rotary_dim / 2` angles, then their sines, as `inflight_rope_table` makes them. On a GPU at a
    /// multiple of 16 bytes.
    pub cos_sin: *const f32,
    /// Queries to rotate as well, `[tokens, num_q_heads, head_dim]`, of the type of the keys on a GPU;
    /// NULL for none. Those of tokens without a slot are rotated too.
    pub q: *const inflight_tensor,
    /// Positions that the table has, at most `INFLIGHT_MAX_COUNT`. A token at a later one is refused
    /// on a processor; a GPU leaves it out.
    pub max_position: u32,
    /// Elements of a head that are rotated, its first; even, at most `head_dim`.
    pub rotary_dim: u32,
    /// `INFLIGHT_ROPE_PAIRS_*`; HALF by default.
    pub pairs: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_rope_init(rope: inflight_rope ..= reserved) where reserved is 0 {
        pairs: INFLIGHT_ROPE_PAIRS_HALF,
    }
}

impl inflight_rope {
    /// Which elements make a pair.
    pub(super) fn pairs(&self) -> Result<RopePairs> {
        match self.pairs {
            INFLIGHT_ROPE_PAIRS_HALF => Ok(RopePairs::Half),
            INFLIGHT_ROPE_PAIRS_INTERLEAVED => Ok(RopePairs::Interleaved),
            other => {
                Err(Failure::argument("pairs", format!("{other} is not an INFLIGHT_ROPE_PAIRS_*")))
            }
        }
    }
}

/// Frequencies as they are. The default.
pub const INFLIGHT_ROPE_SCALING_NONE: u32 = 0;
/// All are divided by `factor`: position interpolation.
pub const INFLIGHT_ROPE_SCALING_LINEAR: u32 = 1;
/// `theta` is multiplied by `factor^(d / (d - 2))`, d the rotary dimension.
pub const INFLIGHT_ROPE_SCALING_NTK: u32 = 2;
/// The same with the factor that the table's length asks for, beyond `original_max_position`.
pub const INFLIGHT_ROPE_SCALING_DYNAMIC_NTK: u32 = 3;
/// YaRN: takes `factor`, `original_max_position`, `beta_fast`, `beta_slow`, `attention_factor`,
/// `mscale`, `mscale_all_dim` and `truncate`.
pub const INFLIGHT_ROPE_SCALING_YARN: u32 = 4;
/// Llama 3.1: takes `factor`, `low_freq_factor`, `high_freq_factor` and `original_max_position`.
pub const INFLIGHT_ROPE_SCALING_LLAMA3: u32 = 5;

/// The rotary position embedding of a model, by the names that Hugging Face configurations have.
///
/// Initialise it with `inflight_rope_config_init`, then set at least `rotary_dim`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct inflight_rope_config {
    /// `sizeof(inflight_rope_config)`.
    pub struct_size: usize,
    /// Elements of a head that are rotated, its first; even, from 2 to 256.
    pub rotary_dim: u32,
    /// Base of the frequencies, above 1; 10000 by default.
    pub theta: f32,
    /// `INFLIGHT_ROPE_SCALING_*`: how frequencies are stretched for long contexts.
    pub scaling: u32,
    /// New length over old; 1 (the default) or more.
    pub factor: f32,
    /// Positions that the model was trained on.
    pub original_max_position: u32,
    /// From this many turns within the training's positions on a frequency stays; 32 by default.
    pub beta_fast: f32,
    /// Up to this many turns it is divided by the factor; 1 by default.
    pub beta_slow: f32,
    /// What cosines and sines are multiplied by; 0 (the default) for `0.1 ln(factor) + 1`, or what
    /// the next two say.
    pub attention_factor: f32,
    /// With `mscale_all_dim`, `a(mscale) / a(mscale_all_dim)` is the attention factor, where a(m) is
    /// `0.1 m ln(factor) + 1`; 0 (the default) counts for nothing.
    pub mscale: f32,
    /// See `mscale`.
    pub mscale_all_dim: f32,
    /// Turns below which a frequency is divided by the factor; 1 by default.
    pub low_freq_factor: f32,
    /// Turns above which it stays; 4 by default.
    pub high_freq_factor: f32,
    /// 1 (the default) if the pairs between which YaRN blends are rounded outwards to whole ones.
    pub truncate: u32,
    /// 0.
    pub reserved: u32,
}

versioned! {
    inflight_rope_config_init(config: inflight_rope_config ..= reserved) where reserved is 0 {
        theta: 10_000.0,
        scaling: INFLIGHT_ROPE_SCALING_NONE,
        factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        truncate: 1,
    }
}

impl inflight_rope_config {
    fn config(&self) -> Result<RopeConfig> {
        let truncate = flag("truncate", self.truncate)?;
        let given = |scale: f32| (scale != 0.0).then_some(scale);
        let scaling = match self.scaling {
            INFLIGHT_ROPE_SCALING_NONE => RopeScaling::None,
            INFLIGHT_ROPE_SCALING_LINEAR => RopeScaling::Linear { factor: self.factor },
            INFLIGHT_ROPE_SCALING_NTK => RopeScaling::Ntk { factor: self.factor },
            INFLIGHT_ROPE_SCALING_DYNAMIC_NTK => RopeScaling::DynamicNtk {
                factor: self.factor,
                max_position: self.original_max_position,
            },
            INFLIGHT_ROPE_SCALING_YARN => RopeScaling::Yarn {
                factor: self.factor,
                original_max_position: self.original_max_position,
                beta_fast: self.beta_fast,
                beta_slow: self.beta_slow,
                attention_factor: given(self.attention_factor),
                mscale: given(self.mscale),
                mscale_all_dim: given(self.mscale_all_dim),
                truncate,
            },
            INFLIGHT_ROPE_SCALING_LLAMA3 => RopeScaling::Llama3 {
                factor: self.factor,
                low_freq_factor: self.low_freq_factor,
                high_freq_factor: self.high_freq_factor,
                original_max_position: self.original_max_position,
            },
            other => {
                return Err(Failure::argument(
                    "scaling",
                    format!("{other} is not an INFLIGHT_ROPE_SCALING_*"),
                ));
            }
        };
        let config =
            RopeConfig { rotary_dim: self.rotary_dim as usize, theta: self.theta, scaling };
        config.check().map_err(|error| {
            Failure::from(error).renamed(&[("max_position", "original_max_position")])
        })?;
        Ok(config)
    }
}

/// Makes the table that rotations read, in this process's memory: for each position the cosines of
/// its `rotary_dim / 2` angles, then their sines, both times the attention factor. Computed in
/// binary64, rounded once. For a GPU the caller copies it there.
///
/// Outputs: `table[0..max_position * rotary_dim]`, `max_position` at most `INFLIGHT_MAX_COUNT`.
/// Fails, and nothing is written: INVALID_ARGUMENT naming the field of `config`, `max_position`,
/// `table`, or `table_len` where the table has fewer elements; STRUCT_SIZE.
/// Threads: any. Since 0.1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inflight_rope_table(
    config: *const inflight_rope_config,
    max_position: u32,
    table: *mut f32,
    table_len: usize,
    error: *mut inflight_error,
) -> inflight_status {
    let body = || {
        // SAFETY: NULL or a config.
        let config = unsafe { read("config", config) }?.config()?;
        let positions = at_most_max("max_position", max_position.into())?;
        let len = positions * config.rotary_dim;
        if table_len < len {
            let reason = format!("is {table_len}, and the table has {len} elements");
            return Err(Failure::argument("table_len", reason));
        }
        // SAFETY: NULL or of so many elements.
        let table = unsafe { array_mut("table", table, len) }?;
        config.fill(table);
        Ok(())
    };
    // SAFETY: `error` is NULL or the caller's.
    unsafe { call(error, body) }
}
