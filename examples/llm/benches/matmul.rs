//! Speed of the matrix products of a model file, against candle's and a plain read of the weights:
//! `cargo bench --bench matmul -- model.gguf [threads]`.
//!
//! Every figure is the best of some rounds, so that other load on the machine counts least. The
//! products run one after the other over all layers, as in a step: weights come from memory, not
//! from a cache.

use std::hint::black_box;
use std::io::{BufReader, Read, Seek};
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Device, Module, Result, Tensor};
use inflight_llm::matmul::{Arena, Input, Matrix, Precision, Threads};

const ROUNDS: usize = 7;
const TOKENS: [usize; 4] = [1, 8, 32, 512];

/// The same product of every layer.
struct Product {
    name: &'static str,
    matrices: Vec<Matrix>,
    candle: Vec<Vec<QMatMul>>,
}

impl Product {
    fn load(
        name: &'static str,
        tensors: &[String],
        content: &Content,
        file: &mut (impl Read + Seek),
        arena: &mut Arena,
    ) -> Result<Self> {
        let layers =
            content.tensor_infos.keys().filter(|key| key.ends_with("attn_q.weight")).count();
        let layers = if tensors[0].contains('#') { layers } else { 1 };
        let (mut matrices, mut candle) = (vec![], vec![]);
        for layer in 0..layers {
            let parts = tensors
                .iter()
                .map(|tensor| {
                    content.tensor(file, &tensor.replace('#', &layer.to_string()), &Device::Cpu)
                })
                .collect::<Result<Vec<QTensor>>>()?;
            matrices.push(Matrix::new(&parts.iter().collect::<Vec<_>>(), Precision::Int8, arena)?);
            candle.push(parts.into_iter().map(QMatMul::from_qtensor).collect::<Result<_>>()?);
        }
        Ok(Self { name, matrices, candle })
    }

    fn bytes(&self) -> usize {
        self.matrices.iter().map(Matrix::bytes).sum()
    }

    /// Multiplications of one token.
    fn macs(&self) -> usize {
        self.matrices.iter().map(|matrix| matrix.rows() * matrix.cols()).sum()
    }

    fn ours(&self, tokens: usize, precision: Precision, threads: &Threads) -> f64 {
        let (rows, cols) = (self.matrices[0].rows(), self.matrices[0].cols());
        let x = activations(tokens * cols);
        let mut y = vec![0.0; tokens * rows];
        let mut input = Input::new();
        best(|| {
            for matrix in &self.matrices {
                input.set(&x, matrix, precision, threads);
                matrix.multiply(threads, &input, &mut y);
            }
            black_box(&y);
        })
    }

    fn candle(&self, tokens: usize) -> f64 {
        let cols = self.matrices[0].cols();
        let x = Tensor::from_vec(activations(tokens * cols), (tokens, cols), &Device::Cpu)
            .expect("as many values as the shape has");
        best(|| {
            for matrix in self.candle.iter().flatten() {
                black_box(matrix.forward(&x).expect("widths fit"));
            }
        })
    }
}

fn activations(count: usize) -> Vec<f32> {
    (0..count).map(|at| (at as f32 * 0.37).sin()).collect()
}

/// Seconds.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(time).fold(f64::INFINITY, f64::min)
}

/// Seconds to add up as many bytes as a step reads.
fn read(bytes: usize, threads: &Threads) -> f64 {
    let words = vec![1u64; bytes / 8];
    best(|| {
        threads.run(|thread, threads| {
            let range = inflight_llm::matmul::parts(words.len(), threads, thread);
            black_box(words[range].iter().fold(0u64, |sum, word| sum.wrapping_add(*word)));
        });
    })
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(path) = arguments.next() else {
        println!("usage: cargo bench --bench matmul -- model.gguf [threads]");
        return Ok(());
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(cores);
    let threads = Threads::new(threads);
    let mut file = BufReader::new(std::fs::File::open(path)?);
    let content = Content::read(&mut file)?;
    let head = ["output.weight", "token_embd.weight"]
        .into_iter()
        .find(|name| content.tensor_infos.contains_key(*name))
        .unwrap_or("token_embd.weight");
    let layer = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("blk.#.{name}.weight")).collect()
    };
    let mut arena = Arena::default();
    let products = [
        ("q, k, v", layer(&["attn_q", "attn_k", "attn_v"])),
        ("attention out", layer(&["attn_output"])),
        ("gate, up", layer(&["ffn_gate", "ffn_up"])),
        ("down", layer(&["ffn_down"])),
        ("head", vec![head.to_string()]),
    ]
    .into_iter()
    .map(|(name, tensors)| Product::load(name, &tensors, &content, &mut file, &mut arena))
    .collect::<Result<Vec<_>>>()?;

    let empty = best(|| (0..1000).for_each(|_| threads.run(|_, _| {})));
    println!("{} threads; a fork and join takes {:.2} us", threads.count(), empty * 1e3);
    let bytes = products.iter().map(Product::bytes).sum::<usize>();
    let seconds = read(bytes, &threads);
    println!(
        "plain read: {:.1} MB in {:.2} ms, {:.1} GB/s",
        bytes as f64 / 1e6,
        seconds * 1e3,
        bytes as f64 / seconds / 1e9
    );
    println!(
        "{:>6}  {:<14} {:>12} {:>22} {:>22} {:>22}",
        "tokens", "product", "shape", "int8", "f32", "candle"
    );
    for tokens in TOKENS {
        let mut step = [0.0; 3];
        for product in &products {
            let times = [
                product.ours(tokens, Precision::Int8, &threads),
                product.ours(tokens, Precision::F32, &threads),
                product.candle(tokens),
            ];
            let matrix = &product.matrices[0];
            print!(
                "{tokens:>6}  {:<14} {:>12}",
                product.name,
                format!("{} x {}", matrix.rows(), matrix.cols())
            );
            for (time, step) in times.iter().zip(&mut step) {
                *step += time;
                let rate = if tokens == 1 {
                    format!("{:.1} GB/s", product.bytes() as f64 / time / 1e9)
                } else {
                    format!("{:.0} GMAC/s", (tokens * product.macs()) as f64 / time / 1e9)
                };
                print!(" {:>22}", format!("{:.2} ms {rate:>10}", time * 1e3));
            }
            println!();
        }
        print!("{tokens:>6}  {:<27}", "whole step");
        for step in step {
            print!(" {:>22}", format!("{:.2} ms {:>6.0} tok/s", step * 1e3, tokens as f64 / step));
        }
        println!();
    }
    Ok(())
}
