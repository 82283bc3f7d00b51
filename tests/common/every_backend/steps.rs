//! Steps of a scheduler through append and attention: chunked prompts, decodes, shared prefixes,
//! preemption, padded rows. What each row gets is attention over its request's whole history,
//! computed afresh and dense.

use std::collections::BTreeMap;

use inflight::batch::{BatchBuilder, RowBuckets};
use inflight::cache::CacheConfig;
use inflight::executor::{Executor, Job, Samples};
use inflight::kernels::AttentionConfig;
use inflight::{Config, Engine, Error, Policy, Request, RequestId, Scheduler, Time, Token};

use crate::attention::{Keys, Terms, softmax, unit_roundoff};
use crate::backend::{self, STEPS_DIM as DIM, STEPS_TYPE};
use crate::layer::{Layer, MakeLayer};
use crate::rng::{Rng, mix};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;

/// A head of the embedding of a token at a position: any function will do.
fn embedding(what: u64, token: Token, position: u32, head: usize) -> impl Iterator<Item = f32> {
    let seed = mix(what << 32 | u64::from(token)) ^ mix(u64::from(position) << 8 | head as u64);
    // Of 9 bits, which every type of queries has, bf16 all but one in two.
    (0..DIM as u64).map(move |d| (mix(seed + d) % 257) as f32 / 128.0 - 1.0)
}

/// Of tokens in a batch or of a sequence: `[tokens, heads, DIM]`.
fn embed(what: u64, tokens: &[Token], positions: &[u32], heads: usize) -> Vec<f32> {
    let tokens = tokens.iter().zip(positions);
    let rows = tokens.flat_map(|(&t, &p)| (0..heads).map(move |head| (t, p, head)));
    rows.flat_map(|(t, p, head)| embedding(what, t, p, head)).collect()
}

fn output_token(id: RequestId, k: u32) -> Token {
    (mix(id.0 << 20 | u64::from(k)) % 1000) as Token
}

struct Model {
    layer: Layer,
    config: AttentionConfig,
    prompts: BTreeMap<RequestId, Vec<Token>>,
    counts: BTreeMap<&'static str, usize>,
}

impl Model {
    fn history(&self, id: RequestId, len: usize) -> Vec<Token> {
        let prompt = self.prompts[&id].iter().copied();
        prompt.chain((0..).map(|k| output_token(id, k))).take(len).collect()
    }

    /// Compares one query's heads with dense attention; `found` is `[HEADS, DIM]`.
    fn check(&self, keys: &[Keys], q: &[f32], position: usize, found: &[f32], what: &str) {
        let config = self.config;
        let left = config.window_left.map_or(0, |left| position.saturating_sub(left as usize));
        for head in 0..HEADS {
            let q: Vec<f64> = q[head * DIM..][..DIM].iter().map(|&x| f64::from(x)).collect();
            let scale = f64::from(config.scale);
            let terms = Terms { scale, position: position as i64, ..Terms::default() };
            let seen = |j: usize| (left..=position).contains(&j);
            let row = softmax(&q, &keys[head * KV_HEADS / HEADS], terms, &seen);
            let largest = row.o.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            // Of 16 bits, probabilities and outputs are rounded.
            let rounded = match STEPS_TYPE.size() {
                4 => 0.0,
                _ => unit_roundoff(STEPS_TYPE) * (2.0 * largest + row.probabilities),
            };
            for (x, want) in found[head * DIM..].iter().zip(&row.o) {
                let off = (f64::from(*x) - want).abs();
                let bound = 1.05 * (row.sums + rounded) + 1e-7;
                // Not `off > bound`: NaN is off.
                assert!(off <= bound, "{what}, head {head}: {x}, not {want}");
            }
        }
    }
}

impl Executor for Model {
    fn run(&mut self, job: Job<'_>, samples: &mut Samples) -> Result<f64, Error> {
        let batch = job.batch.expect("it wants one");
        *self.counts.entry("copies").or_default() += batch.ops().len();
        let (tokens, positions) = (batch.tokens(), batch.positions());
        let [q, k, v] =
            [(0, HEADS), (1, KV_HEADS), (2, KV_HEADS)].map(|(w, h)| embed(w, tokens, positions, h));
        let n = tokens.len();
        let o = self.layer.run(batch, [&q, &k, &v])?;
        assert_eq!(o.len(), q.len());

        let mut at = 0;
        for row in job.step.rows() {
            let (start, len) = (row.num_computed as usize, row.num_tokens as usize);
            let history = self.history(row.id, start + len);
            assert_eq!(&tokens[at..at + len], &history[start..], "{row:?}");
            let all: Vec<u32> = (0..history.len() as u32).collect();
            let dense = |what: u64| embed(what, &history, &all, KV_HEADS);
            let (k, v) = (dense(1), dense(2));
            let keys: Vec<Keys> = (0..KV_HEADS)
                .map(|head| {
                    let of = |x: &[f32]| -> Vec<f64> {
                        let heads = x.chunks(DIM).skip(head).step_by(KV_HEADS);
                        heads.flatten().map(|&x| f64::from(x)).collect()
                    };
                    Keys { head_dim: DIM, k: of(&k), v: of(&v) }
                })
                .collect();
            for i in 0..len {
                let token = (at + i) * HEADS * DIM..(at + i + 1) * HEADS * DIM;
                let what = format!("step {}, {row:?}, query {i}", job.step.id());
                self.check(&keys, &q[token.clone()], start + i, &o[token], &what);
            }
            at += len;
            if row.samples {
                samples.push(output_token(row.id, row.num_output));
            }
            let mut count = |what, yes: bool| {
                *self.counts.entry(what).or_default() += usize::from(yes);
            };
            count("decodes", row.is_decode);
            count("chunks", !row.samples);
            count("later chunks", start > 0 && !row.is_decode);
        }
        let mut count = |what, n: usize| *self.counts.entry(what).or_default() += n;
        let kinds = job.step.rows().iter().map(|row| row.is_decode);
        let decodes = kinds.filter(|&decode| decode).count();
        count("mixed", usize::from(decodes > 0 && decodes < job.step.rows().len()));
        count("preempted", job.step.preempted().len());
        count("queries", n);
        let header = batch.header();
        count("padded rows", (header.padded_rows - header.num_rows) as usize);
        Ok(1.0)
    }
}

fn drive(layer: &MakeLayer, block_size: usize, window: Option<u32>, swap: bool) {
    let num_blocks = 120 / block_size + 1;
    let num_host_blocks = if swap { num_blocks } else { 0 };
    let cache = CacheConfig { num_blocks, block_size, prefix_cache: true, num_host_blocks };
    let config = Config {
        max_num_seqs: 6,
        max_num_batched_tokens: 24,
        max_model_len: 100,
        swap,
        ..Config::new(cache)
    };
    let mut attention = AttentionConfig::new(HEADS, KV_HEADS, DIM, STEPS_TYPE);
    attention.window_left = window;
    let mut rng = Rng::new(9);
    let stem: Vec<Token> = (0..40).map(|_| rng.below(1000) as Token).collect();
    let prompts: BTreeMap<RequestId, Vec<Token>> = (0..30)
        .map(|id| {
            let mut prompt = stem[..rng.below(41)].to_vec();
            prompt.extend((0..rng.within(1, 30)).map(|_| rng.below(1000) as Token));
            (RequestId(id), prompt)
        })
        .collect();
    let model = Model {
        layer: layer(attention, &config),
        config: attention,
        prompts: prompts.clone(),
        counts: BTreeMap::new(),
    };
    let scheduler = Scheduler::new(config, Policy::continuous()).expect("sound limits");
    let builder = BatchBuilder::new(RowBuckets::ladder(8), None);
    let mut engine = Engine::with_builder(scheduler, builder, model).expect("one step at a time");
    for (id, prompt) in prompts {
        let room = 100 - prompt.len() as u32;
        let request = Request::new(id, prompt, (id.0 as u32 * 7 % 40 + 1).min(room));
        engine.submit(request).expect("it fits");
    }
    let mut steps = 0;
    while engine.step(Time(steps)).expect("it runs").is_some() {
        steps += 1;
    }
    let hits = engine.scheduler().cache().stats().hit_tokens;
    let counts = &engine.executor().counts;
    let name = &engine.executor().layer;
    println!(
        "{}, blocks of {block_size}: {steps} steps, {hits} cached tokens, {counts:?}",
        name.name()
    );
    for what in ["decodes", "chunks", "later chunks", "mixed", "preempted", "padded rows"] {
        assert!(counts[what] > 0, "no {what}");
    }
    assert!(hits > 0 && swap == (counts["copies"] > 0));
}

#[test]
fn every_step_is_dense_attention() {
    for (i, layer) in backend::layers(0).into_iter().enumerate() {
        drive(&layer, [4, 1, 16][i % 3], None, false);
        drive(&layer, [1, 8, 4][i % 3], Some(11), false);
    }
}

#[test]
fn swapped_blocks_come_back() {
    for layer in backend::layers(1) {
        drive(&layer, 4, None, true);
    }
}
