//! `wgmma`: products of a warpgroup that are under way until they are waited for. Each warp computes
//! its own 16 rows, as late as allowed.

use crate::block::{Block, SCRATCH_CLOCK};
use crate::host::{Access, Ended, Going, Host, Kind};
use crate::operations::{Op, Wgmma, WgmmaA};
use crate::program::{R32, SHARED_BASE};
use crate::tensor;
use crate::warp::{Busy, By, Group, Product, Warp};

impl<H: Host> Block<H> {
    pub(crate) fn wgmma(&mut self, warp: &mut Warp, group: &Group, wgmma: &Wgmma) -> Going {
        self.aligned(warp, group, "wgmma.mma_async")?;
        self.same_for_the_group(warp, group)?;
        let scale = warp.predicate(wgmma.scale_d);
        if scale != 0 && scale != !0 {
            self.fault(warp, group.pc, format_args!("wgmma: lanes differ in scale-d"));
            return Err(Ended);
        }
        let mut fenced = warp.fences > 0;
        if let WgmmaA::Registers(registers) = &wgmma.a {
            fenced &= warp.use_for_product(registers, By::A);
            warp.begin_product(registers, Busy::A, true);
        }
        fenced &= warp.use_for_product(&wgmma.d, By::D(wgmma.n));
        warp.begin_product(&wgmma.d, Busy::D, scale != 0);
        if !fenced {
            let text =
                format_args!("wgmma uses registers that were used since the last wgmma.fence");
            self.host.report(Kind::Race, warp.thread(0), self.program.first_pc + group.pc, text);
        }
        let descriptor = |warp: &mut Warp, r| {
            let values = warp.double(r);
            (values.iter().all(|value| *value == values[0]), values[0])
        };
        let (same_b, b) = descriptor(warp, wgmma.b);
        let (same_a, a_descriptor) = match &wgmma.a {
            WgmmaA::Descriptor(r) => descriptor(warp, *r),
            WgmmaA::Registers(_) => (true, 0),
        };
        if !same_a || !same_b {
            self.fault(warp, group.pc, format_args!("wgmma: lanes name different descriptors"));
            return Err(Ended);
        }
        let agent = self.host.new_agent(warp.thread(0));
        let product = Product {
            pc: group.pc,
            agent,
            group: warp.product_group,
            scale_d: scale != 0,
            descriptors: [a_descriptor, b],
        };
        let pc = self.pc(group.pc);
        for (at, bytes) in self.operation(wgmma, &product).reads(warp.number % 4) {
            let access = Access { shared: true, write: false, constant: false, bytes };
            self.host.check(agent, u64::from(at), access, pc)?;
        }
        warp.products.push_back(product);
        Ok(())
    }

    fn operation(&self, wgmma: &Wgmma, product: &Product) -> tensor::Wgmma {
        let [element_a, element_b] = wgmma.elements;
        tensor::Wgmma {
            n: wgmma.n,
            element_a,
            element_b,
            a: match wgmma.a {
                WgmmaA::Registers(_) => tensor::Operand::Registers,
                WgmmaA::Descriptor(_) => {
                    tensor::Operand::Shared(tensor::Descriptor::new(product.descriptors[0]))
                }
            },
            b: tensor::Descriptor::new(product.descriptors[1]),
            transpose_a: wgmma.transposed[0],
            transpose_b: wgmma.transposed[1],
            negate_a: wgmma.negated[0],
            negate_b: wgmma.negated[1],
            scale_d: product.scale_d,
        }
    }

    /// All warps of a warpgroup execute the same ones, in the same order.
    fn same_for_the_group(&mut self, warp: &mut Warp, group: &Group) -> Going {
        let of_group = &mut self.products[warp.number as usize / 4];
        let number = warp.products_so_far;
        warp.products_so_far += 1;
        if of_group.len() == number {
            of_group.push(group.pc);
        }
        if of_group[number] == group.pc {
            return Ok(());
        }
        self.fault(
            warp,
            group.pc,
            format_args!("divergent wgmma: another warp of the warpgroup is elsewhere"),
        );
        Err(Ended)
    }

    /// Those of all groups but the `left` youngest are done; what they read may be written again.
    pub(crate) fn finish_products(&mut self, warp: &mut Warp, left: u32) -> Going {
        let program = std::rc::Rc::clone(&self.program);
        let of = |product: &Product| match &program.code[product.pc as usize].op {
            Op::Wgmma(wgmma) => wgmma,
            _ => unreachable!("it was asked for by a wgmma"),
        };
        let newest = warp.product_group;
        let due = warp.products.iter().take_while(|product| product.group + left < newest).count();
        for product in warp.products.drain(..due).collect::<Vec<_>>() {
            let wgmma = of(&product);
            let op = self.operation(wgmma, &product);
            // What is there by now: it was not to be written since.
            let a = match &wgmma.a {
                WgmmaA::Registers(registers) => Some(registers.map(|r| *warp.raw(r))),
                WgmmaA::Descriptor(_) => None,
            };
            let mut d: Vec<[f32; 32]> =
                wgmma.d.iter().map(|r| warp.raw(*r).map(f32::from_bits)).collect();
            // SAFETY: the block's shared memory, which nothing else touches while this runs.
            let shared = unsafe {
                std::slice::from_raw_parts(self.shared, self.launch.shared_bytes as usize)
            };
            let done =
                tensor::wgmma_rows(&op, warp.number % 4, a.as_ref(), &mut d, shared, SHARED_BASE);
            if let Err(at) = done {
                self.fault(
                    warp,
                    product.pc,
                    format_args!("wgmma reads {at:#x}, outside of shared memory"),
                );
                return Err(Ended);
            }
            for (r, values) in wgmma.d.iter().zip(&d) {
                *warp.raw(*r) = values.map(f32::to_bits);
            }
            for (registers, _) in held(wgmma) {
                warp.set_busy(registers, Busy::No);
            }
            self.host.release_id(SCRATCH_CLOCK, product.agent);
            self.host.acquire(SCRATCH_CLOCK, warp.number, warp.live);
            self.host.clear_clock(SCRATCH_CLOCK);
        }
        // What others that are under way hold too.
        let left = if due > 0 { warp.products.len() } else { 0 };
        for i in 0..left {
            for (registers, busy) in held(of(&warp.products[i])) {
                warp.set_busy(registers, busy);
            }
        }
        Ok(())
    }
}

/// The registers that a product holds while it is under way.
fn held(wgmma: &Wgmma) -> impl Iterator<Item = (&[R32], Busy)> {
    let a = match &wgmma.a {
        WgmmaA::Registers(registers) => Some((&registers[..], Busy::A)),
        WgmmaA::Descriptor(_) => None,
    };
    a.into_iter().chain([(&wgmma.d[..], Busy::D)])
}
