//! Copies are made element by element, with the places of the ISA's tables of swizzles.

use super::*;
use crate::testing::Random;

/// The ISA's tables: which 16 bytes of the line stand at each place of it, line by line.
const SWIZZLES: [&[[u32; 8]]; 4] = [
    &[[0, 1, 2, 3, 4, 5, 6, 7]],
    &[[0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6]],
    &[
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 0, 3, 2, 5, 4, 7, 6],
        [2, 3, 0, 1, 6, 7, 4, 5],
        [3, 2, 1, 0, 7, 6, 5, 4],
    ],
    &[
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 0, 3, 2, 5, 4, 7, 6],
        [2, 3, 0, 1, 6, 7, 4, 5],
        [3, 2, 1, 0, 7, 6, 5, 4],
        [4, 5, 6, 7, 0, 1, 2, 3],
        [5, 4, 7, 6, 1, 0, 3, 2],
        [6, 7, 4, 5, 2, 3, 0, 1],
        [7, 6, 5, 4, 3, 2, 1, 0],
    ],
];

/// Where the byte at `at` of an address without swizzle goes.
fn place(swizzle: u32, at: u32) -> u32 {
    let table = SWIZZLES[swizzle as usize];
    let line = &table[(at / 128) as usize % table.len()];
    let unit = line.iter().position(|unit| *unit == at / 16 % 8).unwrap() as u32;
    at / 128 * 128 + unit * 16 + at % 16
}

/// The byte of the tensor at these indices of elements, or none outside of it.
fn byte(map: &Map, at: &[i64], byte: u32) -> Option<u64> {
    let mut address = map.base + u64::from(byte);
    for (i, at) in at.iter().enumerate() {
        if *at < 0 || *at >= i64::from(map.dim[i]) {
            return None;
        }
        address += *at as u64 * if i == 0 { map.element_bytes.into() } else { map.stride[i] };
    }
    Some(address)
}

/// Every byte of the box by its definition against the chunks.
fn check(map: &Map, dst: u32, coordinates: &[i32]) {
    let rank = map.rank as usize;
    let got = chunks(map, dst, coordinates);
    let mut bytes_of = std::collections::BTreeMap::new();
    for chunk in &got {
        assert!(0 < chunk.bytes && chunk.bytes <= 16, "{chunk:?}");
        let last = (dst + chunk.shared + chunk.bytes - 1) / 16;
        assert_eq!((dst + chunk.shared) / 16, last, "{chunk:?} crosses 16 bytes");
        for i in 0..chunk.bytes {
            let from = chunk.inside.then_some(chunk.global + u64::from(i));
            assert_eq!(bytes_of.insert(chunk.shared + i, from), None, "{chunk:?} twice");
        }
    }
    assert_eq!(bytes_of.len() as u32, bytes(map), "{map:?}");
    let mut index = [0u32; 5];
    let line = map.box_[0] * map.element_bytes;
    let pitch = [line, 32, 64, 128][map.swizzle as usize];
    loop {
        let at: Vec<i64> =
            (0..rank).map(|i| i64::from(coordinates[i]) + i64::from(index[i])).collect();
        let number = (1..rank).rev().fold(0, |sum, i| sum * map.box_[i] + index[i]);
        for i in 0..map.element_bytes {
            let linear = number * pitch + index[0] * map.element_bytes + i;
            let shared = place(map.swizzle, dst + linear) - dst;
            assert_eq!(bytes_of[&shared], byte(map, &at, i), "{map:?} {coordinates:?} {index:?}");
        }
        let Some(next) = (0..rank).find(|&i| index[i] + 1 < map.box_[i]) else { break };
        index[next] += 1;
        index[..next].fill(0);
    }
}

/// A map with dense strides, but for `gap` bytes more for each.
fn map(rank: u32, element_bytes: u32, swizzle: u32, dim: [u32; 5], box_: [u32; 5]) -> Map {
    let mut stride = [0; 5];
    let mut size = u64::from(dim[0] * element_bytes).next_multiple_of(16);
    for i in 1..5 {
        stride[i] = size + 16;
        size = stride[i] * u64::from(dim[i]);
    }
    Map { base: 0x10_0000, rank, element_bytes, swizzle, dim, stride, box_ }
}

#[test]
fn boxes_by_every_byte() {
    let mut random = Random::new(9);
    for turn in 0..3000 {
        let mut below = |n: u64| (random.next() % n) as u32;
        let element_bytes = [1, 2, 4, 8][below(4) as usize];
        let swizzle = turn % 4;
        let rank = 1 + below(5);
        let units = if swizzle == 0 { 1 + below(5) } else { 1 + below(1 << swizzle) };
        let mut box_ = [1; 5].map(|_: u32| 1 + below(4));
        box_[0] = units * 16 / element_bytes;
        if rank == 2 {
            box_[1] = 1 + below(20);
        }
        let dim = [1; 5].map(|_: u32| 1 + below(9)).map(|d| d * if rank == 1 { 9 } else { 1 });
        let map = map(rank, element_bytes, swizzle, dim, box_);
        let coordinates: Vec<i32> = (0..rank as usize)
            .map(|i| below(u64::from(dim[i] + 2 * box_[i])) as i32 - box_[i] as i32)
            .collect();
        let dst = 1024 + below(16) * 128;
        check(&map, dst, &coordinates);
    }
}

#[test]
fn a_box_of_the_kernels_kind() {
    // Heads of 128 bf16 in two halves of 64: a row of 128 bytes, 16 tokens of a block.
    let map = map(4, 2, 3, [128, 8, 16, 40, 1], [64, 1, 16, 1, 1]);
    let got = chunks(&map, 2048, &[64, 3, 0, 7]);
    assert_eq!((got.len(), bytes(&map)), (16 * 8, 2048));
    let global = map.base + 128 + 3 * map.stride[1] + 7 * map.stride[3];
    let chunk = |shared, global| Chunk { shared, global, bytes: 16, inside: true };
    assert_eq!(got[0], chunk(0, global));
    assert_eq!(got[7], chunk(112, global + 112));
    // Line 1: units 1 0 3 2 ...
    assert_eq!(got[8], chunk(128 + 16, global + map.stride[2]));
    assert_eq!(got[8 * 9 + 2], chunk(128 * 9 + 3 * 16, global + 9 * map.stride[2] + 32));
    assert!(got.iter().all(|chunk| chunk.inside));
}

#[test]
fn borders_split_units() {
    // 10 bytes a row from 6 bytes before: zeros, bytes of the tensor, zeros.
    let narrow = map(1, 1, 0, [5, 1, 1, 1, 1], [16, 1, 1, 1, 1]);
    let zeros = |shared, bytes| Chunk { shared, global: 0, bytes, inside: false };
    let got = chunks(&narrow, 1024, &[-6]);
    let middle = Chunk { shared: 6, global: narrow.base, bytes: 5, inside: true };
    assert_eq!(got, [zeros(0, 6), middle, zeros(11, 5)]);
    // All of it outside: whole units.
    assert_eq!(chunks(&narrow, 1024, &[5]), [zeros(0, 16)]);
    assert_eq!(chunks(&narrow, 1024, &[-16]), [zeros(0, 16)]);
    assert_eq!(chunks(&narrow, 1024, &[i32::MIN]), [zeros(0, 16)]);
    assert_eq!(chunks(&narrow, 1024, &[i32::MAX]), [zeros(0, 16)]);
    let rows = map(2, 2, 0, [8, 3, 1, 1, 1], [8, 4, 1, 1, 1]);
    let got = chunks(&rows, 1024, &[0, -1]);
    assert_eq!(got.iter().map(|c| c.inside).collect::<Vec<_>>(), [false, true, true, true]);
    assert_eq!(got[1].global, rows.base);
}
