//! Block operations against copies made number by number.

#[path = "common/kv.rs"]
mod kv;
#[path = "common/rng.rs"]
mod rng;

use inflight::cache::BlockOp;
use inflight::device::cpu::{Cpu, Isa};
use inflight::kernels::{DType, KvCache, KvLayout};
use kv::{Kind, Memory, cpu, field};
use rng::Rng;

fn op(kind: u32, src: u32, dst: u32) -> BlockOp {
    BlockOp { kind, src, dst }
}

fn move_blocks(
    cpu: &Cpu,
    ops: &[BlockOp],
    device: &mut [Memory],
    host: &mut [Memory],
) -> inflight::Result<()> {
    let mut device: Vec<KvCache<'_>> = device.iter_mut().map(Memory::cache).collect();
    let mut host: Vec<KvCache<'_>> = host.iter_mut().map(Memory::cache).collect();
    inflight::kernels::cpu::move_blocks(cpu, ops, &mut device, &mut host)
}

/// Copies a block of `from` bytes, laid out as `src`, to `to`, laid out as `dst`.
fn copy(from: &[u8], src: (&Memory, u32), to: &mut [u8], dst: (&Memory, u32)) {
    let KvLayout { block_size, num_heads, head_dim, dtype, .. } = src.0.layout;
    for side in 0..2 {
        for token in 0..block_size {
            for head in 0..num_heads {
                let a = src.0.at(side, src.1 as usize, token, head);
                let b = dst.0.at(side, dst.1 as usize, token, head);
                let len = head_dim * dtype.size();
                to[b..b + len].copy_from_slice(&from[a..a + len]);
            }
        }
    }
}

#[test]
fn operations_are_carried_out_in_order_on_every_layer() {
    let mut rng = Rng::new(3);
    let cpus = [cpu(1, Isa::best()), cpu(2, Isa::best())];
    let (mut cases, mut total) = (0, 0);
    for device_kind in Kind::ALL {
        for host_kind in Kind::ALL {
            for dtype in DType::ALL {
                for block_size in [1, 3, 16] {
                    let large = rng.chance(10);
                    let (heads, dim) = (rng.pick(&[1, 3, 8]), rng.pick(&[8, 72, 128]));
                    let blocks = [rng.within(2, 6), rng.within(1, 4)];
                    let layers = rng.within(1, 3);
                    let with_host = rng.chance(80);
                    let mut memories = |kind, blocks| -> Vec<Memory> {
                        let dims = [blocks, block_size, heads, dim];
                        (0..layers).map(|_| Memory::new(kind, dtype, dims, rng.next())).collect()
                    };
                    let mut device = memories(device_kind, blocks[0]);
                    let mut host = if with_host { memories(host_kind, blocks[1]) } else { vec![] };
                    let count = if large { 200 } else { rng.within(0, 8) };
                    let ops: Vec<BlockOp> = (0..count)
                        .map(|_| {
                            let (d, h) = (blocks[0], blocks[1]);
                            match rng.below(if with_host { 3 } else { 1 }) as u32 {
                                BlockOp::SWAP_OUT => {
                                    op(BlockOp::SWAP_OUT, rng.below(d) as u32, rng.below(h) as u32)
                                }
                                BlockOp::SWAP_IN => {
                                    op(BlockOp::SWAP_IN, rng.below(h) as u32, rng.below(d) as u32)
                                }
                                // Also to itself.
                                _ => op(BlockOp::COPY, rng.below(d) as u32, rng.below(d) as u32),
                            }
                        })
                        .collect();
                    let wanted = expected(&ops, &device, &host);
                    move_blocks(rng.pick(&[&cpus[0], &cpus[1]]), &ops, &mut device, &mut host)
                        .unwrap();
                    for (memory, wanted) in device.iter().chain(&host).zip(&wanted) {
                        let differs = memory.bytes.iter().zip(wanted).position(|(a, b)| a != b);
                        let what = (device_kind, host_kind, dtype, block_size, heads, dim);
                        assert_eq!(differs, None, "{what:?}: first byte that differs");
                    }
                    cases += 1;
                    total += ops.len();
                }
            }
        }
    }
    println!("{cases} calls, {total} operations");
}

/// The bytes of device and host caches afterwards.
fn expected(ops: &[BlockOp], device: &[Memory], host: &[Memory]) -> Vec<Vec<u8>> {
    let mut after: Vec<Vec<u8>> =
        device.iter().chain(host).map(|memory| memory.bytes.to_vec()).collect();
    for layer in 0..device.len() {
        for op in ops {
            let here = (&device[layer], layer);
            let there = host.get(layer).map(|memory| (memory, device.len() + layer));
            let (from, to) = match op.kind {
                BlockOp::SWAP_OUT => (here, there.unwrap()),
                BlockOp::SWAP_IN => (there.unwrap(), here),
                _ => (here, here),
            };
            let bytes = after[from.1].clone();
            copy(&bytes, (from.0, op.src), &mut after[to.1], (to.0, op.dst));
        }
    }
    after
}

#[test]
fn what_is_refused_is_named_and_nothing_is_copied() {
    let dims = [4, 2, 2, 16];
    let layers = |dtype, blocks: [usize; 2], dims: [usize; 4]| -> Vec<Memory> {
        let memory = |blocks| Memory::new(Kind::Hnd, dtype, [blocks, dims[1], dims[2], dims[3]], 9);
        blocks.into_iter().map(memory).collect()
    };
    let good = op(BlockOp::COPY, 0, 1);
    let f32 = DType::F32;
    let cases: Vec<(&str, BlockOp, Vec<Memory>)> = vec![
        ("ops", op(3, 0, 1), layers(f32, [2, 2], dims)),
        ("ops", op(u32::MAX, 0, 1), layers(f32, [2, 2], dims)),
        ("ops", op(BlockOp::COPY, 4, 1), layers(f32, [8, 8], dims)),
        ("ops", op(BlockOp::COPY, 1, 4), layers(f32, [8, 8], dims)),
        ("ops", op(BlockOp::COPY, 4, 4), layers(f32, [8, 8], dims)),
        ("ops", op(BlockOp::SWAP_OUT, 4, 1), layers(f32, [8, 8], dims)),
        ("ops", op(BlockOp::SWAP_OUT, 1, 2), layers(f32, [3, 2], dims)),
        ("ops", op(BlockOp::SWAP_IN, 2, 1), layers(f32, [2, 3], dims)),
        ("ops", op(BlockOp::SWAP_IN, 1, 4), layers(f32, [8, 8], dims)),
        ("ops", op(BlockOp::COPY, u32::MAX, 0), layers(f32, [2, 2], dims)),
        ("host", op(BlockOp::SWAP_OUT, 0, 0), vec![]),
        ("host", op(BlockOp::SWAP_IN, 0, 0), vec![]),
        ("host", good, layers(f32, [2, 2], dims).into_iter().take(1).collect()),
        ("host", good, layers(DType::F16, [2, 2], dims)),
        ("host", good, layers(f32, [2, 2], [4, 3, 2, 16])),
        ("host", good, layers(f32, [2, 2], [4, 2, 1, 16])),
        ("host", good, layers(f32, [2, 2], [4, 2, 2, 8])),
    ];
    let cpu = cpu(1, Isa::best());
    let count = cases.len();
    for (i, (name, bad, mut host)) in cases.into_iter().enumerate() {
        // A layer with fewer blocks says which there are.
        let mut device = layers(f32, [9, 4], dims);
        let before: Vec<Vec<u8>> =
            device.iter().chain(&host).map(|memory| memory.bytes.to_vec()).collect();
        let result = move_blocks(&cpu, &[good, good, bad], &mut device, &mut host);
        assert_eq!(field(result), name, "case {i}");
        let same = device.iter().chain(&host).zip(&before).all(|(a, b)| a.bytes[..] == b[..]);
        assert!(same, "case {i} has copied");
    }
    assert_eq!(field(move_blocks(&cpu, &[good], &mut [], &mut [])), "device");
    move_blocks(&cpu, &[], &mut [], &mut []).unwrap();
    println!("{count} bad calls refused");
}
