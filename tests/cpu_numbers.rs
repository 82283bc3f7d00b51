//! Conversions between the number types of caches and tensors, against the formats' definitions.

#[path = "common/kv.rs"]
mod kv;
#[path = "common/rng.rs"]
mod rng;

use half::{bf16, f16};
use inflight::kernels::cpu::{Append, Rope, append};
use inflight::kernels::rope::RopePairs;
use inflight::kernels::{DType, Fp8E4m3};
use kv::{Kind, Memory, Tensor, cpus, encode, fast_fp8};
use rng::Rng;

#[test]
fn fp8_codes_are_exact_and_numbers_round_to_the_nearest() {
    for code in 0..=u8::MAX {
        let (number, value) = (Fp8E4m3(code).to_f32(), kv::fp8_value(code));
        let same = f64::from(number).to_bits() == value.to_bits();
        assert!(same || (number.is_nan() && value.is_nan()), "{code:#x}: {number}, not {value}");
    }
    let mut numbers: Vec<f32> = (0..0x7f_u8)
        .flat_map(|code| {
            // Codes, ties between them, and their neighbours in f32.
            let (low, high) = (kv::fp8_value(code), kv::fp8_value((code + 1).min(0x7e)));
            [low as f32, ((low + high) / 2.0) as f32]
        })
        .chain([464.0, 448.5, 1e-45, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, 2e-3, 0.0])
        .flat_map(|x| [x, f32::from_bits(x.to_bits() + 1), f32::from_bits(x.to_bits().max(1) - 1)])
        .chain([f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0x7fff_ffff)])
        .collect();
    // All of f32, in steps.
    numbers.extend((0..=0x7fff_ffff_u32).step_by(15_013).map(f32::from_bits));
    // Where the codes are, closer.
    numbers.extend((0x3a00_0000..=0x4400_0000_u32).step_by(1_709).map(f32::from_bits));
    for &number in &numbers {
        for number in [number, -number] {
            let code = Fp8E4m3::from_f32(number).0;
            assert_eq!(code, fast_fp8(number), "{number:e} ({:#x})", number.to_bits());
        }
    }
    for &number in numbers.iter().take(2_000) {
        assert_eq!(fast_fp8(number), kv::fp8(number), "the oracle's short cut, {number}");
    }
    println!("256 codes, {} numbers", 2 * numbers.len());
}

#[test]
fn half_types_round_as_the_half_crate_does() {
    // Turned by 0 degrees a query is widened and narrowed; by a multiple of them, rounded.
    let cpus = cpus(1);
    let table: Vec<f32> = [1.0, 2_f32.powi(-9), 2_f32.powi(-20), 2_f32.powi(14), 1.0 + 1e-6]
        .into_iter()
        .flat_map(|cos| [cos, 0.0])
        .collect();
    let tokens = 65_536 / 2;
    for dtype in [DType::F16, DType::Bf16] {
        let mut q = Tensor::new(&mut Rng::new(1), dtype, [tokens, 1, 8], false, |_| 0.0);
        let none = Tensor::new(&mut Rng::new(1), DType::F32, [tokens, 1, 8], false, |_| 0.0);
        let slots = vec![-1; tokens];
        for position in 0..table.len() as u32 / 2 {
            for cpu in &cpus {
                for token in 0..tokens {
                    let at = q.at(token, 0, 0);
                    let bits = [2 * token as u16, 2 * token as u16 + 1];
                    q.bytes[at..at + 4].copy_from_slice(bytemuck::cast_slice(&bits));
                }
                let mut memory = Memory::new(Kind::Nhd, DType::F32, [1, 1, 1, 8], 1);
                let positions = vec![position; tokens];
                let pairs = RopePairs::Half;
                let view = q.view_mut();
                let rope = Rope {
                    positions: &positions,
                    cos_sin: &table,
                    rotary_dim: 2,
                    pairs,
                    q: Some(view),
                };
                let args =
                    Append { rope: Some(rope), ..Append::new(none.view(), none.view(), &slots) };
                append(cpu, &mut memory.cache(), args).unwrap();
                for bits in 0..=u16::MAX {
                    let (token, i) = (usize::from(bits / 2), usize::from(bits % 2));
                    let (x, y) = match dtype {
                        DType::F16 => {
                            (f16::from_bits(bits).to_f32(), f16::from_bits(bits ^ 1).to_f32())
                        }
                        _ => (bf16::from_bits(bits).to_f32(), bf16::from_bits(bits ^ 1).to_f32()),
                    };
                    let cos = table[2 * position as usize];
                    let number = if i == 0 { x * cos - y * 0.0 } else { x * cos + y * 0.0 };
                    let nan = f32::from_bits(0x7fc0_0000);
                    let mut wanted = [0; 2];
                    encode(dtype, if number.is_nan() { nan } else { number }, &mut wanted);
                    let at = q.at(token, 0, i);
                    assert_eq!(q.bytes[at..at + 2], wanted, "{dtype} {bits:#x} times {cos}");
                }
            }
        }
    }
    println!("2 x 65536 numbers, {} factors, {} instruction sets", table.len() / 2, cpus.len());
}
