//! Attention as it is written first: in f32, one query at a time, with the roundings of a plain
//! implementation in the queries' type. How wrong that is says how wrong a kernel may be; with a
//! seeded [`Defect`] it must be told from a kernel that is right.

use inflight::kernels::AttentionConfig;

use super::case::{Answer, Case};
use super::numbers::rounded;

/// What may be wrong with an implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    WindowIgnored,
    WindowOneShort,
    CausalOneLate,
    CausalOneEarly,
    /// Query `i` at position `i`, as if the row had no history.
    CausalFromStart,
    ScaleIgnored,
    CapIgnored,
    CapAfterAlibi,
    AlibiWithoutAbs,
    AlibiFromStart,
    AlibiOfKvHead,
    MaskIgnored,
    MaskBitsReversed,
    MaskFromStart,
    SinkIgnored,
    SinkTwice,
    SinkNotInLse,
    LseBase2,
    LseWithoutMax,
    EmptyIsNan,
    EmptyLseZero,
    EmptyKeepsOutput,
    HeadsInterleaved,
    LastKeyMissed,
    OneKeyTooMany,
    LastBlocksSwapped,
    FirstScaleForAll,
    KScaleForV,
    SumsIn16Bits,
    LogitsIn16Bits,
    MaskedKeysWeighALittle,
}

impl Defect {
    pub(crate) const ALL: [Self; 31] = [
        Self::WindowIgnored,
        Self::WindowOneShort,
        Self::CausalOneLate,
        Self::CausalOneEarly,
        Self::CausalFromStart,
        Self::ScaleIgnored,
        Self::CapIgnored,
        Self::CapAfterAlibi,
        Self::AlibiWithoutAbs,
        Self::AlibiFromStart,
        Self::AlibiOfKvHead,
        Self::MaskIgnored,
        Self::MaskBitsReversed,
        Self::MaskFromStart,
        Self::SinkIgnored,
        Self::SinkTwice,
        Self::SinkNotInLse,
        Self::LseBase2,
        Self::LseWithoutMax,
        Self::EmptyIsNan,
        Self::EmptyLseZero,
        Self::EmptyKeepsOutput,
        Self::HeadsInterleaved,
        Self::LastKeyMissed,
        Self::OneKeyTooMany,
        Self::LastBlocksSwapped,
        Self::FirstScaleForAll,
        Self::KScaleForV,
        Self::SumsIn16Bits,
        Self::LogitsIn16Bits,
        Self::MaskedKeysWeighALittle,
    ];
}

pub(crate) fn naive(case: &Case, defect: Option<Defect>) -> Answer {
    let AttentionConfig { num_q_heads: heads, head_dim, .. } = case.spec.config;
    let n = case.num_tokens() * heads;
    let mut answer = Answer { o: vec![0.0; n * head_dim], lse: vec![0.0; n] };
    for row in 0..case.rows.len() {
        for kv_head in 0..case.spec.config.num_kv_heads {
            head(case, row, kv_head, defect, &mut answer);
        }
    }
    answer
}

/// The numbers of a KV head of a row, f32.
fn gather(case: &Case, row: usize, kv_head: usize, defect: Option<Defect>) -> [Vec<f32>; 2] {
    let is = |what: Defect| defect == Some(what);
    let (kv_len, bs) = (case.rows[row].1, case.spec.block_size);
    let blocks = kv_len.div_ceil(bs);
    // In a table whose last two blocks are full and exchanged.
    let place = |j: usize| match j / bs {
        block if is(Defect::LastBlocksSwapped) && blocks > 1 && kv_len % bs == 0 => match block {
            b if b + 2 == blocks => j + bs,
            b if b + 1 == blocks => j - bs,
            _ => j,
        },
        _ => j,
    };
    let head_dim = case.spec.config.head_dim;
    let (mut k, mut v) = (Vec::new(), Vec::new());
    for i in 0..kv_len * head_dim {
        let (j, d) = (place(i / head_dim), i % head_dim);
        let (x, own) = case.k(row, j, kv_head, d);
        let first = case.k_scale.first().copied().unwrap_or(1.0);
        k.push(x * if is(Defect::FirstScaleForAll) { first } else { own });
        let (y, own_v) = case.v(row, j, kv_head, d);
        v.push(y * if is(Defect::KScaleForV) { own } else { own_v });
    }
    [k, v]
}

fn head(case: &Case, row: usize, kv_head: usize, defect: Option<Defect>, answer: &mut Answer) {
    let is = |what: Defect| defect == Some(what);
    let AttentionConfig { num_q_heads, num_kv_heads, head_dim, q_dtype, .. } = case.spec.config;
    let group = num_q_heads / num_kv_heads;
    let (q_len, kv_len) = case.rows[row];
    let [k, v] = gather(case, row, kv_head, defect);
    for i in 0..q_len {
        for g in 0..group {
            let head = match defect {
                Some(Defect::HeadsInterleaved) => g * num_kv_heads + kv_head,
                _ => kv_head * group + g,
            };
            let token = case.qo_indptr[row] as usize + i;
            let q = case.q.row(token, head);
            let sink = case.sinks.as_ref().map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
            let sink = if is(Defect::SinkIgnored) { f32::NEG_INFINITY } else { sink };
            let mut logits = vec![f32::NEG_INFINITY; kv_len];
            let mut seen = 0;
            for j in 0..kv_len {
                if sees(case, row, i, j, defect) {
                    seen += 1;
                    logits[j] =
                        logit(case, (row, i, head), &q, &k[j * head_dim..][..head_dim], j, defect);
                }
            }
            let out = token * num_q_heads + head;
            let o = &mut answer.o[out * head_dim..][..head_dim];
            if seen == 0 {
                let nan = is(Defect::EmptyIsNan) || is(Defect::EmptyKeepsOutput);
                o.fill(if nan { f32::NAN } else { 0.0 });
                answer.lse[out] = if is(Defect::EmptyLseZero) { 0.0 } else { sink };
                continue;
            }
            let most = logits.iter().copied().fold(sink, f32::max);
            if is(Defect::MaskedKeysWeighALittle) {
                logits.iter_mut().for_each(|s| *s = s.max(most - 9.0));
            }
            let keys: f32 = logits.iter().map(|s| (s - most).exp()).sum();
            let weight = if is(Defect::SinkTwice) { 2.0 } else { 1.0 };
            let sum = keys + weight * (sink - most).exp();
            for (s, v) in logits.iter().zip(v.chunks(head_dim)) {
                // Keys not seen may be poison.
                if *s == f32::NEG_INFINITY {
                    continue;
                }
                let p = rounded(q_dtype, (s - most).exp() / sum);
                o.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
                if is(Defect::SumsIn16Bits) {
                    o.iter_mut().for_each(|o| *o = rounded(q_dtype, *o));
                }
            }
            if is(Defect::OneKeyTooMany) && kv_len % case.spec.block_size != 0 {
                // Of no weight; but 0 times NaN is NaN.
                o[0] += 0.0 * case.v(row, kv_len, kv_head, 0).0;
            }
            o.iter_mut().for_each(|o| *o = rounded(q_dtype, *o));
            let sum = if is(Defect::SinkNotInLse) { keys } else { sum };
            let lse = if is(Defect::LseWithoutMax) { sum.ln() } else { most + sum.ln() };
            answer.lse[out] = if is(Defect::LseBase2) { lse / 2.0_f32.ln() } else { lse };
        }
    }
}

fn logit(
    case: &Case,
    (row, i, head): (usize, usize, usize),
    q: &[f32],
    k: &[f32],
    j: usize,
    defect: Option<Defect>,
) -> f32 {
    let is = |what: Defect| defect == Some(what);
    let (q_len, kv_len) = case.rows[row];
    let config = case.spec.config;
    let mut s: f32 = q.iter().zip(k).map(|(a, b)| a * b).sum();
    if !is(Defect::ScaleIgnored) {
        s *= config.scale;
    }
    if is(Defect::LogitsIn16Bits) {
        s = rounded(config.q_dtype, s);
    }
    let bent = |s: f32| match config.soft_cap {
        Some(cap) if !is(Defect::CapIgnored) => cap * (s / cap).tanh(),
        _ => s,
    };
    if !is(Defect::CapAfterAlibi) {
        s = bent(s);
    }
    if let Some(slopes) = &case.alibi {
        let position = match defect {
            Some(Defect::AlibiFromStart) => i as i64,
            _ => (kv_len + i) as i64 - q_len as i64,
        };
        let slope = match defect {
            Some(Defect::AlibiOfKvHead) => slopes[head / config.group_size()],
            _ => slopes[head],
        };
        let distance = position - j as i64;
        let distance = if is(Defect::AlibiWithoutAbs) { distance } else { distance.abs() };
        s -= slope * distance as f32;
    }
    if is(Defect::CapAfterAlibi) { bent(s) } else { s }
}

fn sees(case: &Case, row: usize, i: usize, j: usize, defect: Option<Defect>) -> bool {
    let is = |what: Defect| defect == Some(what);
    let (q_len, kv_len) = case.rows[row];
    let config = case.spec.config;
    let p = match defect {
        Some(Defect::CausalFromStart) => i as i64,
        _ => (kv_len + i) as i64 - q_len as i64,
    };
    let j = j as i64;
    let last = match defect {
        Some(Defect::CausalOneLate) => p + 1,
        Some(Defect::CausalOneEarly) => p - 1,
        _ => p,
    };
    if config.causal && j > last {
        return false;
    }
    if let Some(left) = config.window_left {
        let left = i64::from(left) - i64::from(is(Defect::WindowOneShort));
        if !is(Defect::WindowIgnored) && j < p - left {
            return false;
        }
    }
    if j == kv_len as i64 - 1 && is(Defect::LastKeyMissed) {
        return false;
    }
    let Some(mask) = case.mask.as_ref().filter(|_| !is(Defect::MaskIgnored)) else { return true };
    let width = i64::from(mask.widths[row]);
    let start = if is(Defect::MaskFromStart) { 0 } else { kv_len as i64 - width };
    if j < start || j >= start + width {
        return true;
    }
    let (bit, line) = ((j - start) as usize, (width as usize).div_ceil(8));
    let byte = mask.bits[mask.indptr[row] as usize + i * line + bit / 8];
    let shift = if is(Defect::MaskBitsReversed) { 7 - bit % 8 } else { bit % 8 };
    byte & 1 << shift != 0
}
