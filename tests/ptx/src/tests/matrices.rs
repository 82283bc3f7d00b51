//! Matrices in registers and in shared memory, against plain products: where each element is, is written
//! here as the ISA's figures have it, element by element.

use crate::boxes::{Map, bytes, chunks};
use crate::numbers::{
    e4m3_to_f16, e5m2_to_f16, f16_to_f32, f32_to_bf16, f32_to_e4m3, f32_to_e5m2, f32_to_f16,
};
use crate::tensor::{
    Descriptor, Element, Lanes, Operand, Wgmma, ldmatrix, mma, movmatrix, stmatrix, wgmma_rows,
};

const KINDS: [Element; 5] =
    [Element::F16, Element::Bf16, Element::Tf32, Element::E4m3, Element::E5m2];

/// A small number that all formats have exactly, and its bits.
fn number(kind: Element, i: usize) -> (f64, u32) {
    let value = ((i * 7919 + 13) % 15) as f32 - 7.0;
    let bits = match kind {
        Element::F16 => f32_to_f16(value).into(),
        Element::Bf16 => f32_to_bf16(value).into(),
        Element::Tf32 => value.to_bits(),
        Element::E4m3 => f32_to_e4m3(value).into(),
        Element::E5m2 => f32_to_e5m2(value).into(),
    };
    // e5m2 has no 5 or 7: what it rounds to.
    let exact = match kind {
        Element::E4m3 => f16_to_f32(e4m3_to_f16(bits as u8)),
        Element::E5m2 => f16_to_f32(e5m2_to_f16(bits as u8)),
        _ => value,
    };
    (f64::from(exact), bits)
}

#[test]
fn mma_is_the_product_of_what_the_fragments_hold() {
    for kind in KINDS {
        let per = 4 / kind.bytes();
        for k in [8 * per, 4 * per] {
            let a: Vec<Vec<_>> =
                (0..16).map(|m| (0..k).map(|i| number(kind, m * 37 + i)).collect()).collect();
            let b: Vec<Vec<_>> = (0..k)
                .map(|i| (0..8).map(|n| number(kind, i * 11 + n * 5 + 3)).collect())
                .collect();
            // Register r, part i of a lane: groupID = lane / 4, threadID = lane % 4.
            let registers = k / (4 * per);
            let mut fragments_a = vec![[0; 32]; 2 * registers];
            let mut fragments_b = vec![[0; 32]; registers];
            for lane in 0..32 {
                for (r, fragment) in fragments_a.iter_mut().enumerate() {
                    for i in 0..per {
                        let row = lane / 4 + if r % 2 == 1 { 8 } else { 0 };
                        let column = lane % 4 * per + i + if r >= 2 { 4 * per } else { 0 };
                        fragment[lane] |= a[row][column].1 << (8 * kind.bytes() * i % 32);
                    }
                }
                for (r, fragment) in fragments_b.iter_mut().enumerate() {
                    for i in 0..per {
                        let row = lane % 4 * per + i + r * 4 * per;
                        fragment[lane] |= b[row][lane / 4].1 << (8 * kind.bytes() * i % 32);
                    }
                }
            }
            let c: [Lanes; 4] = std::array::from_fn(|r| {
                std::array::from_fn(|lane| ((r * 32 + lane) as f32).to_bits())
            });
            let d = mma(&fragments_a, &fragments_b, &c, k, kind, kind);
            for (r, register) in d.iter().enumerate() {
                for (lane, got) in register.iter().enumerate() {
                    let (row, column) = (lane / 4 + 8 * (r / 2), lane % 4 * 2 + r % 2);
                    let sum: f64 = (0..k).map(|i| a[row][i].0 * b[i][column].0).sum();
                    let want = sum + (r * 32 + lane) as f64;
                    assert_eq!(
                        f64::from(f32::from_bits(*got)),
                        want,
                        "{kind:?} k{k} lane {lane} {r}"
                    );
                }
            }
        }
    }
    let infinite = [[0x7f80_7f80; 32]; 4];
    let d = mma(&infinite, &[[0; 32]; 2], &[[0; 32]; 4], 16, Element::Bf16, Element::Bf16);
    assert_eq!(d[0][0], 0x7fff_ffff);
}

#[test]
fn matrices_of_eight_by_eight() {
    let rows: [[u8; 16]; 32] =
        std::array::from_fn(|row| std::array::from_fn(|i| (row * 16 + i) as u8));
    let at = |m: usize, row: usize, column: usize| {
        u32::from(u16::from_le_bytes([
            rows[8 * m + row][2 * column],
            rows[8 * m + row][2 * column + 1],
        ]))
    };
    for count in [1, 2, 4] {
        let (plain, turned) = (ldmatrix(&rows, count, false), ldmatrix(&rows, count, true));
        for m in 0..count {
            for lane in 0..32 {
                let (row, column) = (lane / 4, lane % 4 * 2);
                assert_eq!(plain[m][lane], at(m, row, column) | at(m, row, column + 1) << 16);
                assert_eq!(turned[m][lane], at(m, column, row) | at(m, column + 1, row) << 16);
            }
            assert_eq!(movmatrix(&plain[m]), turned[m]);
        }
        for transposed in [false, true] {
            let back = stmatrix(&ldmatrix(&rows, count, transposed), count, transposed);
            assert_eq!(back[..8 * count], rows[..8 * count]);
        }
    }
}

/// A place in shared memory by the canonical layouts, as a formula of its own: of rows of `span` bytes in
/// groups of 8, the 16-byte part `c` of row r is at part `c ^ (r % ...)`, by how many parts are swizzled.
fn place(start: u32, span: u32, row: u32, byte: u32) -> u32 {
    let at = start + row * span + byte;
    // The swizzle repeats every 8 x span bytes, each line of 128 bytes XORed by its number.
    let line = at / 128;
    let parts = span / 16;
    let part = at / 16 % parts;
    let moved = match span {
        16 => part,
        _ => part ^ (line % parts),
    };
    at / span * span + moved * 16 + at % 16
}

#[test]
fn wgmma_reads_operands_where_their_layouts_have_them() {
    let mut cases = 0;
    for kind in KINDS {
        let size = kind.bytes();
        let k = 32 / size;
        for (code, span) in [(0u64, 16u32), (3, 32), (2, 64), (1, 128)] {
            for transposed in [false, true] {
                if transposed && size != 2 {
                    continue;
                }
                let n = 64;
                let mut shared = vec![0xa5u8; 64 << 10];
                let base = 1024;
                let mut put = |start: u32, row: usize, i: usize, bits: u32| {
                    // Leading and stride offsets that differ from what is dense.
                    let (row, i, size) = (row as u32, i as u32, size as u32);
                    let at = if transposed {
                        // Parts of `span` along M (N); in a group of 8 values of K one follows on the other.
                        let (part, within) = (row * size / span, row * size % span);
                        let group = i / 8;
                        let (of_part, of_group) =
                            if span == 16 { (1024, 256) } else { (8192, 1024 * span / 128) };
                        let start = start + part * of_part + group * of_group;
                        place(start, span, i % 8, within)
                    } else {
                        let (part, within) = (i * size / span, i * size % span);
                        let start = start
                            + row / 8 * 8 * span * if span == 16 { 2 } else { 1 }
                            + part * 8192;
                        place(start, span, row % 8, within)
                    };
                    for byte in 0..size {
                        shared[(at - base + byte) as usize] = (bits >> (8 * byte)) as u8;
                    }
                };
                let (start_a, start_b) = (2048, 32768);
                let a: Vec<Vec<f64>> = (0..64)
                    .map(|m| {
                        (0..k)
                            .map(|i| {
                                let x = number(kind, m * 37 + i);
                                put(start_a, m, i, x.1);
                                x.0
                            })
                            .collect()
                    })
                    .collect();
                let b: Vec<Vec<f64>> = (0..n)
                    .map(|j| {
                        (0..k)
                            .map(|i| {
                                let x = number(kind, j * 5 + i * 11 + 3);
                                put(start_b, j, i, x.1);
                                x.0
                            })
                            .collect()
                    })
                    .collect();
                let (leading, stride) = match (transposed, span) {
                    (false, 16) => (8192, 256),
                    (false, _) => (8192, 8 * span),
                    // Without a swizzle the leading offset is between groups of K.
                    (true, 16) => (256, 1024),
                    (true, _) => (8192, 1024 * span / 128),
                };
                let descriptor = |start: u32| {
                    Descriptor::new(
                        u64::from(start >> 4)
                            | u64::from(leading as u32 >> 4) << 16
                            | u64::from(stride >> 4) << 32
                            | code << 62,
                    )
                };
                let op = Wgmma {
                    n,
                    element_a: kind,
                    element_b: kind,
                    a: Operand::Shared(descriptor(start_a)),
                    b: descriptor(start_b),
                    transpose_a: transposed,
                    transpose_b: transposed,
                    negate_a: true,
                    negate_b: false,
                    scale_d: true,
                };
                for warp in 0..4 {
                    let mut d = vec![[1.0f32; 32]; n / 2];
                    wgmma_rows(&op, warp, None, &mut d, &shared, base).unwrap();
                    for (register, values) in d.iter().enumerate() {
                        for (lane, value) in values.iter().enumerate() {
                            let row = 16 * warp as usize + lane / 4 + 8 * (register / 2 % 2);
                            let column = register / 4 * 8 + lane % 4 * 2 + register % 2;
                            let sum: f64 = (0..k).map(|i| a[row][i] * b[column][i]).sum();
                            assert_eq!(
                                f64::from(*value),
                                1.0 - sum,
                                "{kind:?} span {span} transposed {transposed} row {row} column {column}"
                            );
                        }
                    }
                }
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 5 * 4 + 2 * 4);
}

#[test]
fn boxes_are_cut_at_the_tensor_and_swizzled() {
    for (swizzle, span) in [(0, 64), (1, 32), (2, 64), (3, 128)] {
        let map = Map {
            base: 1 << 20,
            rank: 3,
            element_bytes: 2,
            swizzle,
            dim: [100, 7, 3, 0, 0],
            stride: [0, 256, 4096, 0, 0],
            box_: [span / 2, 4, 2, 0, 0],
        };
        let to = 2048;
        for at in [[0, 0, 0], [-5, -1, 2], [97, 5, 1], [40, 3, -1]] {
            let mut seen = vec![None; bytes(&map) as usize];
            for chunk in chunks(&map, to, &at) {
                assert!(chunk.bytes <= 16);
                for i in 0..chunk.bytes {
                    let global = chunk.inside.then(|| chunk.global + u64::from(i));
                    assert!(seen[(chunk.shared + i) as usize].replace(global).is_none());
                }
            }
            for z in 0..2i64 {
                for y in 0..4i64 {
                    for byte in 0..i64::from(span) {
                        let x = i64::from(at[0]) * 2 + byte;
                        let (row, plane) = (i64::from(at[1]) + y, i64::from(at[2]) + z);
                        let inside = (0..200).contains(&x)
                            && (0..7).contains(&row)
                            && (0..3).contains(&plane);
                        let global =
                            inside.then(|| (1 << 20) + (plane * 4096 + row * 256 + x) as u64);
                        let number = (z * 4 + y) as u32;
                        let shared = if swizzle == 0 {
                            to + number * span + byte as u32
                        } else {
                            place(to, span, number, byte as u32)
                        };
                        assert_eq!(
                            seen[(shared - to) as usize],
                            Some(global),
                            "{swizzle} {at:?} {z} {y} {byte}"
                        );
                    }
                }
            }
        }
    }
}
