//! Every type against f64, and the promise that neither batch nor threads change a bit.

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::{bf16, f16};

use super::input::Block;
use super::kernels::Kernels;
use super::pack::BLOCK;
use super::portable::Portable;
use super::{Arena, Input, Matrix, Precision, Threads};

const TYPES: [GgmlDType; 7] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q8_0,
    // Not native.
    GgmlDType::Q5_0,
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// Random codes under random scales: every code, -128 of Q8_0 too, appears.
fn tensor(random: &mut Random, dtype: GgmlDType, rows: usize, cols: usize) -> QTensor {
    let mut data = vec![];
    for _ in 0..rows * cols / dtype.block_size() {
        let value = random.float();
        match dtype {
            GgmlDType::F32 => data.extend(value.to_le_bytes()),
            GgmlDType::F16 => data.extend(f16::from_f32(value).to_bits().to_le_bytes()),
            GgmlDType::BF16 => data.extend(bf16::from_f32(value).to_bits().to_le_bytes()),
            _ => {
                let start = data.len();
                data.extend((0..dtype.type_size()).map(|_| random.next() as u8));
                data[start..start + 2]
                    .copy_from_slice(&f16::from_f32(value).to_bits().to_le_bytes());
                if dtype == GgmlDType::Q4_1 {
                    let minimum = f16::from_f32(8.0 * random.float()).to_bits().to_le_bytes();
                    data[start + 2..start + 4].copy_from_slice(&minimum);
                }
            }
        }
    }
    let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, dtype).unwrap();
    QTensor::new(storage, (rows, cols)).unwrap()
}

fn dequantised(tensor: &QTensor) -> Vec<f32> {
    tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Widths that end within a block or a group of four, where the type allows it.
fn widths(dtype: GgmlDType) -> &'static [usize] {
    if dtype.block_size() == 1 { &[1, 3, 30, 64, 301] } else { &[32, 96, 288] }
}

fn matrix_of(tensors: &[&QTensor], precision: Precision) -> Matrix {
    Matrix::new(tensors, precision, &mut Arena::exact()).unwrap()
}

/// All rows, as they are kept.
fn kept(matrix: &Matrix) -> Vec<f32> {
    let mut rows = vec![f32::NAN; matrix.rows() * matrix.cols()];
    for (at, row) in rows.chunks_exact_mut(matrix.cols()).enumerate() {
        matrix.read_row(at, row);
    }
    rows
}

fn product(matrix: &Matrix, threads: &Threads, x: &[f32], precision: Precision) -> Vec<f32> {
    let mut input = Input::new();
    input.set(x, matrix, precision, threads);
    let mut y = vec![f32::NAN; input.tokens() * matrix.rows()];
    matrix.multiply(threads, &input, &mut y);
    y
}

fn portable_product(
    matrix: &Matrix,
    threads: &Threads,
    x: &[f32],
    precision: Precision,
) -> Vec<f32> {
    let mut input = Input::new();
    input.set(x, matrix, precision, threads);
    let mut y = vec![f32::NAN; input.tokens() * matrix.rows()];
    matrix.multiply_with(Portable, threads, &input, &mut y);
    y
}

/// What 8 bits make of activations, by the definition.
fn rounded(x: &[f32], cols: usize) -> Vec<f32> {
    let block = |x: &[f32]| {
        let largest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
        let scale = largest / 127.0;
        x.iter().map(|x| (x * (127.0 / largest)).round_ties_even() * scale).collect::<Vec<_>>()
    };
    x.chunks(cols).flat_map(|row| row.chunks(BLOCK).flat_map(block)).collect()
}

/// Compares with f64: the error of f32 sums is bounded by the sum of magnitudes, which for codes
/// with a minimum are those of code and minimum apart.
fn check(w: &[f32], x: &[f32], cols: usize, y: &[f32], slack: f64) {
    let rows = w.len() / cols;
    for (token, x) in x.chunks(cols).enumerate() {
        for (row, w) in w.chunks(cols).enumerate() {
            let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
            let exact: f64 = terms.sum();
            let size: f64 = x.iter().map(|&x| f64::from(x).abs()).sum();
            let bound = slack * f64::from(f32::EPSILON) * size * cols as f64;
            let value = f64::from(y[token * rows + row]);
            assert!((value - exact).abs() <= bound, "{token}, {row}: {value} for {exact}");
        }
    }
}

#[test]
fn products_are_those_of_the_dequantised_weights() {
    let mut random = Random(1);
    let threads = Threads::new(2);
    for dtype in TYPES {
        for &cols in widths(dtype) {
            for rows in [1, 8, 21] {
                let tensor = tensor(&mut random, dtype, rows, cols);
                for precision in [Precision::F32, Precision::Int8] {
                    let matrix = matrix_of(&[&tensor], precision);
                    let w = kept(&matrix);
                    // Of the largest weight: 15 scales and a minimum, or 128 scales.
                    let slack = f64::from(w.iter().fold(16.0f32, |a, w| a.max(w.abs())));
                    let rounds = precision == Precision::Int8 && dtype.block_size() > 1;
                    for tokens in (1..=14).chain([24, 33, 40]) {
                        let x = random.floats(tokens * cols);
                        let y = product(&matrix, &threads, &x, precision);
                        let portable = portable_product(&matrix, &threads, &x, precision);
                        let x = if rounds { rounded(&x, cols) } else { x };
                        check(&w, &x, cols, &y, slack);
                        check(&w, &x, cols, &portable, slack);
                    }
                }
            }
        }
    }
}

/// Types that are not kept become blocks of 8 bits for products in 8 bits, f32 else.
#[test]
fn other_types_are_repacked_finer_than_they_were() {
    let mut random = Random(8);
    for dtype in [GgmlDType::Q5_0, GgmlDType::Q5_1, GgmlDType::Q4K, GgmlDType::Q6K] {
        let values = candle_core::Tensor::from_vec(random.floats(9 * 512), (9, 512), &Device::Cpu);
        let tensor = QTensor::quantize(&values.unwrap(), dtype).unwrap();
        let (w, matrix) = (dequantised(&tensor), matrix_of(&[&tensor], Precision::Int8));
        assert_eq!(matrix.bytes(), 16 * 512 / BLOCK * 34);
        assert_eq!(matrix_of(&[&tensor], Precision::F32).bytes(), 16 * 512 * 4);
        for (kept, w) in kept(&matrix).chunks(BLOCK).zip(w.chunks(BLOCK)) {
            let largest = w.iter().fold(0.0f32, |a, w| a.max(w.abs()));
            for (kept, w) in kept.iter().zip(w) {
                assert!((kept - w).abs() <= largest * 0.503 / 127.0, "{kept} for {w}");
            }
        }
    }
    // Too small or too large for a scale in f16: f32 keeps them.
    assert!(super::pack::to_q8(&[1e-9; 32]).is_none());
    assert!(super::pack::to_q8(&[1e9; 32]).is_none());
}

#[test]
fn rows_are_read_exactly() {
    let mut random = Random(2);
    for dtype in TYPES {
        for &cols in widths(dtype) {
            let tensors =
                [tensor(&mut random, dtype, 9, cols), tensor(&mut random, dtype, 16, cols)];
            let matrix = matrix_of(&[&tensors[0], &tensors[1]], Precision::F32);
            assert_eq!((matrix.rows(), matrix.cols()), (25, cols));
            let w = [dequantised(&tensors[0]), dequantised(&tensors[1])].concat();
            let mut row = vec![f32::NAN; cols];
            for at in 0..25 {
                matrix.read_row(at, &mut row);
                assert_eq!(row, w[at * cols..][..cols], "row {at} of {dtype:?}");
            }
        }
    }
}

#[test]
fn batch_and_threads_change_no_bit() {
    let mut random = Random(3);
    let teams: Vec<_> = (1..=4).map(Threads::new).collect();
    for dtype in TYPES {
        let cols = *widths(dtype).last().unwrap();
        let tensors = [tensor(&mut random, dtype, 13, cols), tensor(&mut random, dtype, 30, cols)];
        // More than stay in the cache at once.
        let x = random.floats(700 * cols);
        for precision in [Precision::F32, Precision::Int8] {
            let matrix = matrix_of(&[&tensors[0], &tensors[1]], precision);
            let all = product(&matrix, &teams[1], &x, precision);
            for (token, x) in x.chunks(cols).enumerate().step_by(23) {
                let alone = product(&matrix, &teams[0], x, precision);
                assert_eq!(alone, all[token * 43..][..43], "token {token} of {dtype:?}");
            }
            for tokens in 1..=40 {
                let threads = &teams[tokens % 4];
                let some = product(&matrix, threads, &x[cols..][..tokens * cols], precision);
                assert_eq!(some, all[43..][..tokens * 43], "{tokens} tokens of {dtype:?}");
            }
        }
    }
}

#[test]
fn stacked_parts_of_several_types_are_one_product() {
    let mut random = Random(4);
    let threads = Threads::new(3);
    let tensors: Vec<_> = TYPES
        .iter()
        .zip([5, 8, 1, 17, 3, 24, 9])
        .map(|(&t, rows)| tensor(&mut random, t, rows, 64))
        .collect();
    let x = random.floats(5 * 64);
    for precision in [Precision::F32, Precision::Int8] {
        let matrix = matrix_of(&tensors.iter().collect::<Vec<_>>(), precision);
        let all = product(&matrix, &threads, &x, precision);
        let mut first = 0;
        for tensor in &tensors {
            let part = matrix_of(&[tensor], precision);
            let y = product(&part, &threads, &x, precision);
            for (y, all) in y.chunks(part.rows()).zip(all.chunks(matrix.rows())) {
                assert_eq!(y, &all[first..][..part.rows()]);
            }
            first += part.rows();
        }
    }
}

/// Scales of one and activations that are whole: results are integers, which f32 holds exactly.
#[test]
fn sums_of_integers_are_exact_at_their_extremes() {
    let threads = Threads::new(1);
    let one = f16::from_f32(1.0).to_bits().to_le_bytes();
    for (dtype, code) in [
        (GgmlDType::Q4_0, 0xff),
        (GgmlDType::Q4_1, 0xff),
        (GgmlDType::Q8_0, 0x80),
        (GgmlDType::Q8_0, 0x7f),
    ] {
        let (cols, rows) = (64, 9);
        let mut data = vec![code; rows * cols / 32 * dtype.type_size()];
        for block in data.chunks_exact_mut(dtype.type_size()) {
            block[..2].copy_from_slice(&one);
            if dtype == GgmlDType::Q4_1 {
                block[2..4].copy_from_slice(&one);
            }
        }
        let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, dtype).unwrap();
        let tensor = QTensor::new(storage, (rows, cols)).unwrap();
        let matrix = matrix_of(&[&tensor], Precision::F32);
        let weight = dequantised(&tensor)[0];
        for sign in [127.0, -127.0] {
            let x = vec![sign; 3 * cols];
            let expected = vec![weight * sign * cols as f32; 3 * rows];
            for precision in [Precision::F32, Precision::Int8] {
                assert_eq!(product(&matrix, &threads, &x, precision), expected);
                assert_eq!(portable_product(&matrix, &threads, &x, precision), expected);
            }
        }
    }
}

#[test]
fn activations_round_to_the_nearest_everywhere_alike() {
    let mut random = Random(5);
    let mut x = random.floats(134);
    x[..4].copy_from_slice(&[1.0, -1.0, 0.5 / 127.0, 1.5 / 127.0]);
    x[32..64].fill(0.0);
    // The first is divided by as it is, of the second not even the inverse is a number.
    x[64..96].fill(-1e-36);
    x[96..128].fill(-1e-37);
    let mut blocks = [Block::ZERO; 5];
    Portable.round(&x, &mut blocks);
    assert_eq!(blocks[0].codes[..4], [127, -127, 0, 2]);
    assert_eq!(blocks[1], Block::ZERO);
    assert_eq!(blocks[2].codes, [-127; 32]);
    assert_eq!(blocks[3], Block::ZERO);
    assert_eq!(blocks[4].codes[6..], [0; 26]);
    for block in &blocks {
        let sum: i32 = block.codes.iter().map(|&code| i32::from(code)).sum();
        assert_eq!(block.sum, block.scale * sum as f32);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = super::avx2::Avx2::detect() {
        let mut same = [Block::ZERO; 5];
        avx2.round(&x, &mut same);
        assert_eq!(blocks, same);
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let mut random = Random(6);
    let threads = Threads::new(1);
    for dtype in TYPES {
        let tensor = tensor(&mut random, dtype, 8, 64);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.floats(2 * 64);
            x[40] = bad;
            for precision in [Precision::F32, Precision::Int8] {
                let matrix = matrix_of(&[&tensor], precision);
                let y = product(&matrix, &threads, &x, precision);
                assert!(y[..8].iter().all(|y| !y.is_finite()), "{dtype:?}, {precision:?}: {y:?}");
                assert!(y[8..].iter().all(|y| y.is_finite()));
            }
        }
    }
}

#[test]
fn parts_must_fit() {
    let mut random = Random(7);
    let new = |tensors: &[&QTensor]| Matrix::new(tensors, Precision::F32, &mut Arena::exact());
    assert!(new(&[]).is_err());
    let (a, b) =
        (tensor(&mut random, GgmlDType::F32, 2, 3), tensor(&mut random, GgmlDType::F32, 2, 4));
    assert!(new(&[&a, &b]).is_err());
}
