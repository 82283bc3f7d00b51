//! Rotary position embedding: frequencies, and the tables kernels read.
//!
//! A pair of elements at position `p` is turned by the angle `p * f`, where `f` is the frequency of
//! the pair: `theta^(-2 i / rotary_dim)` for pair `i` (RoFormer, Su et al. 2021). How a model that
//! was trained on short contexts is stretched to long ones is its [`RopeScaling`]; the rules are
//! those of Hugging Face transformers, by whose names models are published.

use std::f64::consts::TAU;

use crate::error::{Error, Result};

/// Which elements of a head make a pair, for `rotary_dim` elements and pair `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `i` and `i + rotary_dim / 2`: GPT-NeoX, Llama as Hugging Face stores it.
    Half,
    /// `2 i` and `2 i + 1`: GPT-J, the paper, Llama as its authors stored it.
    Interleaved,
}

/// How frequencies are changed for contexts longer than those of the training.
///
/// Every `factor` is 1 or more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Position interpolation (Chen et al. 2023): all are divided by the factor.
    Linear {
        /// New length over old.
        factor: f32,
    },
    /// NTK-aware (bloc97 2023): theta is multiplied by `factor^(d / (d - 2))`, `d` the rotary
    /// dimension, which leaves the highest frequency and divides the lowest by the factor.
    Ntk {
        /// New length over old.
        factor: f32,
    },
    /// NTK-aware with the factor that the length asks for (emozilla 2023): none up to
    /// `max_position`, `factor * length / max_position - (factor - 1)` beyond.
    ///
    /// A [table](RopeConfig::table) has the frequencies for its own length, whatever position of it
    /// is read: of two tables the longer one is not a continuation of the shorter.
    DynamicNtk {
        /// How fast theta grows with the length.
        factor: f32,
        /// Positions the model was trained on.
        max_position: u32,
    },
    /// YaRN (Peng et al. 2023): high frequencies stay, low ones are divided by the factor, those
    /// between are blended, and cosines and sines are multiplied by an attention factor.
    Yarn {
        /// New length over old.
        factor: f32,
        /// Positions the model was trained on.
        original_max_position: u32,
        /// From this many turns within the training's positions on a frequency stays; usually 32.
        beta_fast: f32,
        /// Up to this many turns it is divided by the factor; usually 1.
        beta_slow: f32,
        /// Of cosines and sines; `None` for `0.1 ln(factor) + 1`, or what the next two say.
        attention_factor: Option<f32>,
        /// With `mscale_all_dim`, `a(mscale) / a(mscale_all_dim)` is the attention factor, where
        /// `a(m)` is `0.1 m ln(factor) + 1`: DeepSeek. One of them alone, or 0, counts for nothing.
        mscale: Option<f32>,
        /// See `mscale`.
        mscale_all_dim: Option<f32>,
        /// Whether the pairs between which frequencies are blended are rounded outwards to whole
        /// ones; usual, and not so in gpt-oss.
        truncate: bool,
    },
    /// Llama 3.1 (Dubey et al. 2024): wavelengths longer than `original_max_position /
    /// low_freq_factor` are multiplied by the factor, those shorter than `original_max_position /
    /// high_freq_factor` stay, those between are blended.
    Llama3 {
        /// New length over old, and more; 8 for Llama 3.1.
        factor: f32,
        /// Turns below which a frequency is divided by the factor; 1 for Llama 3.1.
        low_freq_factor: f32,
        /// Turns above which it stays; more than `low_freq_factor`, 4 for Llama 3.1.
        high_freq_factor: f32,
        /// Positions the model was trained on.
        original_max_position: u32,
    },
}

/// The rotary position embedding of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Elements of a head that are rotated, its first; even, from 2 to 256.
    pub rotary_dim: usize,
    /// Base of the frequencies; above 1, often 10,000.
    pub theta: f32,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Without scaling.
    #[must_use]
    pub fn new(rotary_dim: usize, theta: f32) -> Self {
        Self { rotary_dim, theta, scaling: RopeScaling::None }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn check(&self) -> Result<()> {
        let dim = self.rotary_dim;
        if dim == 0 || dim > 256 || !dim.is_multiple_of(2) {
            let reason = format!("{dim} is not even and within 2 to 256");
            return Err(Error::argument("rotary_dim", reason));
        }
        if !(self.theta.is_finite() && self.theta > 1.0) {
            let reason = format!("{} is not finite and above 1", self.theta);
            return Err(Error::argument("theta", reason));
        }
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => check_factor(factor),
            RopeScaling::Ntk { factor } => {
                check_factor(factor)?;
                self.check_ntk()
            }
            RopeScaling::DynamicNtk { factor, max_position } => {
                check_factor(factor)?;
                check_positions("max_position", max_position)?;
                self.check_ntk()
            }
            RopeScaling::Yarn {
                factor,
                original_max_position,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
                truncate: _,
            } => {
                check_factor(factor)?;
                check_positions("original_max_position", original_max_position)?;
                check_above("beta_slow", beta_slow, 0.0)?;
                check_above("beta_fast", beta_fast, 0.0)?;
                if beta_fast < beta_slow {
                    let reason = format!("{beta_fast} is below beta_slow, {beta_slow}");
                    return Err(Error::argument("beta_fast", reason));
                }
                attention_factor.map_or(Ok(()), |x| check_above("attention_factor", x, 0.0))?;
                for (field, scale) in [("mscale", mscale), ("mscale_all_dim", mscale_all_dim)] {
                    if let Some(bad) = scale.filter(|scale| !(scale.is_finite() && *scale >= 0.0)) {
                        let reason = format!("{bad} is not finite and 0 or more");
                        return Err(Error::argument(field, reason));
                    }
                }
                Ok(())
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                check_factor(factor)?;
                check_positions("original_max_position", original_max_position)?;
                check_above("low_freq_factor", low_freq_factor, 0.0)?;
                check_above("high_freq_factor", high_freq_factor, low_freq_factor)
            }
        }
    }

    fn check_ntk(&self) -> Result<()> {
        if self.rotary_dim == 2 {
            return Err(Error::argument("rotary_dim", "the one frequency of 2 has no NTK scaling"));
        }
        Ok(())
    }

    /// The frequency of each pair, in radians a position; those of [`RopeScaling::DynamicNtk`] up
    /// to its `max_position`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn inv_freq(&self) -> Result<Vec<f32>> {
        self.check()?;
        Ok(self.frequencies(0).into_iter().map(|frequency| frequency as f32).collect())
    }

    /// What cosines and sines are multiplied by: 1 but for [`RopeScaling::Yarn`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
    pub fn attention_factor(&self) -> Result<f32> {
        self.check()?;
        Ok(self.attention() as f32)
    }

    /// `[max_positions, rotary_dim]`: the cosines of a position's `rotary_dim / 2` angles, then
    /// their sines, all times the attention factor. Computed in f64, rounded once.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, or `max_positions` when the table is too large.
    pub fn table(&self, max_positions: usize) -> Result<Vec<f32>> {
        self.check()?;
        let too_large =
            || Error::argument("max_positions", format!("{max_positions} is too large"));
        let len = max_positions.checked_mul(self.rotary_dim).ok_or_else(too_large)?;
        let mut table = Vec::new();
        table.try_reserve_exact(len).map_err(|_| too_large())?;
        table.resize(len, 0.0);
        self.fill(&mut table);
        Ok(table)
    }

    /// Writes such a table, of a configuration that was checked.
    pub(crate) fn fill(&self, table: &mut [f32]) {
        let positions = table.len() / self.rotary_dim;
        let (frequencies, factor) = (self.frequencies(positions), self.attention());
        for (position, row) in table.chunks_exact_mut(self.rotary_dim).enumerate() {
            let (cosines, sines) = row.split_at_mut(self.rotary_dim / 2);
            for ((cos, sin), frequency) in cosines.iter_mut().zip(sines).zip(&frequencies) {
                let angle = position as f64 * frequency;
                (*cos, *sin) = ((angle.cos() * factor) as f32, (angle.sin() * factor) as f32);
            }
        }
    }

    /// Frequencies for a context of `positions`.
    fn frequencies(&self, positions: usize) -> Vec<f64> {
        let (dim, theta) = (self.rotary_dim as f64, f64::from(self.theta));
        let stretched = |factor: f64| theta * factor.powf(dim / (dim - 2.0));
        let base = match self.scaling {
            RopeScaling::Ntk { factor } => stretched(f64::from(factor)),
            RopeScaling::DynamicNtk { factor, max_position } => {
                let (factor, trained) = (f64::from(factor), f64::from(max_position));
                let length = (positions as f64).max(trained);
                stretched(factor * length / trained - (factor - 1.0))
            }
            _ => theta,
        };
        (0..self.rotary_dim / 2)
            .map(|pair| self.stretch(pair, base.powf(-2.0 * pair as f64 / dim)))
            .collect()
    }

    /// The frequency of a pair as the scaling makes it.
    fn stretch(&self, pair: usize, frequency: f64) -> f64 {
        match self.scaling {
            RopeScaling::None | RopeScaling::Ntk { .. } | RopeScaling::DynamicNtk { .. } => {
                frequency
            }
            RopeScaling::Linear { factor } => frequency / f64::from(factor),
            RopeScaling::Yarn {
                factor,
                original_max_position,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                let dim = self.rotary_dim as f64;
                // The pair, a fraction, that turns so often within the training's positions.
                let pair_of = |turns: f32| {
                    let length = f64::from(original_max_position) / (f64::from(turns) * TAU);
                    dim * length.ln() / (2.0 * f64::from(self.theta).ln())
                };
                let (low, high) = (pair_of(beta_fast), pair_of(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                // Equal bounds are a step, as transformers has it.
                let width = if low == high { 0.001 } else { high - low };
                let divided = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                frequency * (divided / f64::from(factor) + (1.0 - divided))
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position,
            } => {
                let (low, high) = (f64::from(low_freq_factor), f64::from(high_freq_factor));
                let turns = f64::from(original_max_position) * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * ((1.0 - kept) / f64::from(factor) + kept)
            }
        }
    }

    fn attention(&self) -> f64 {
        let RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } =
            self.scaling
        else {
            return 1.0;
        };
        let by = |scale: f32| 0.1 * f64::from(scale) * f64::from(factor).ln() + 1.0;
        let given = |scale: Option<f32>| scale.filter(|&scale| scale != 0.0);
        match (attention_factor, given(mscale), given(mscale_all_dim)) {
            (Some(factor), _, _) => f64::from(factor),
            (None, Some(mscale), Some(all)) => by(mscale) / by(all),
            _ => by(1.0),
        }
    }
}

fn check_factor(factor: f32) -> Result<()> {
    if factor.is_finite() && factor >= 1.0 {
        return Ok(());
    }
    Err(Error::argument("factor", format!("{factor} is not a finite number of at least 1")))
}

fn check_positions(field: &'static str, positions: u32) -> Result<()> {
    if positions > 0 {
        return Ok(());
    }
    Err(Error::argument(field, "must be at least 1"))
}

fn check_above(field: &'static str, number: f32, least: f32) -> Result<()> {
    if number.is_finite() && number > least {
        return Ok(());
    }
    Err(Error::argument(field, format!("{number} is not a finite number above {least}")))
}
