//! `wgmma`: products of a warpgroup that are under way until they are waited for. Each warp computes
//! its own 16 rows, as late as allowed.

use crate::block::{Block, SCRATCH_CLOCK};
use crate::host::{Access, Ended, Going, Host, Kind};
use crate::operations::{Op, Wgmma, WgmmaA};
use crate::program::SHARED_BASE;
use crate::tensor;
use crate::warp::{Group, Product, Warp};

impl<H: Host> Block<H> {
    pub(crate) fn wgmma(&mut self, warp: &mut Warp, group: &Group, wgmma: &Wgmma) -> Going {
        self.aligned(warp, group, "wgmma.mma_async")?;
        self.same_for_the_group(warp, group)?;
        let scale = warp.predicate(wgmma.scale_d);
        if scale != 0 && scale != !0 {
            self.fault(warp, group.pc, format_args!("wgmma: lanes differ in scale-d"));
            return Err(Ended);
        }
        let a = match &wgmma.a {
            WgmmaA::Registers(registers) => {
                self.fenced(warp, group, registers);
                Some(registers.map(|r| *warp.word(r)))
            }
            WgmmaA::Descriptor(_) => None,
        };
        // Accumulators that are added to: written since the fence, unless by the product before.
        let is_chained =
            warp.products.back().is_some_and(|product| self.accumulates(product, wgmma));
        if scale != 0 && !is_chained {
            self.fenced(warp, group, &wgmma.d);
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
            a,
            descriptors: [a_descriptor, b],
        };
        let pc = self.pc(group.pc);
        for (at, bytes) in self.operation(wgmma, &product).reads(warp.number % 4) {
            let access = Access { shared: true, write: false, constant: false, bytes };
            self.host.check(agent, u64::from(at), access, pc)?;
        }
        warp.set_busy(&wgmma.d, true);
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

    fn wgmma_at(&self, pc: u32) -> Option<&Wgmma> {
        match &self.program.code[pc as usize].op {
            Op::Wgmma(wgmma) => Some(wgmma),
            _ => None,
        }
    }

    fn accumulates(&self, product: &Product, wgmma: &Wgmma) -> bool {
        self.wgmma_at(product.pc).is_some_and(|before| before.d == wgmma.d)
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

    fn fenced(&mut self, warp: &Warp, group: &Group, registers: &[crate::program::R32]) {
        if registers.iter().any(|r| warp.is_unfenced(*r)) {
            let text =
                format_args!("wgmma uses registers that were written since the last wgmma.fence");
            let pc = self.pc(group.pc);
            self.host.report(Kind::Race, warp.thread(0), pc, text);
        }
    }

    /// Those of all groups but the `left` youngest are done; what they read may be written again.
    pub(crate) fn finish_products(&mut self, warp: &mut Warp, left: u32) -> Going {
        while let Some(product) = warp.products.front() {
            if product.group + left >= warp.product_group {
                break;
            }
            let product = warp.products.pop_front().expect("there is a first");
            let program = std::rc::Rc::clone(&self.program);
            let Op::Wgmma(wgmma) = &program.code[product.pc as usize].op else { continue };
            let op = self.operation(wgmma, &product);
            let mut d: Vec<[f32; 32]> =
                wgmma.d.iter().map(|r| warp.accumulator(*r).map(f32::from_bits)).collect();
            // SAFETY: the block's shared memory, which nothing else touches while this runs.
            let shared = unsafe {
                std::slice::from_raw_parts(self.shared, self.launch.shared_bytes as usize)
            };
            let done = tensor::wgmma_rows(
                &op,
                warp.number % 4,
                product.a.as_ref(),
                &mut d,
                shared,
                SHARED_BASE,
            );
            if let Err(at) = done {
                self.fault(
                    warp,
                    product.pc,
                    format_args!("wgmma reads {at:#x}, outside of shared memory"),
                );
                return Err(Ended);
            }
            for (r, values) in wgmma.d.iter().zip(&d) {
                *warp.accumulator(*r) = values.map(f32::to_bits);
            }
            let still = warp.products.iter().any(|other| self.accumulates(other, wgmma));
            warp.set_busy(&wgmma.d, still);
            self.host.release_id(SCRATCH_CLOCK, product.agent);
            self.host.acquire(SCRATCH_CLOCK, warp.number, warp.live);
            self.host.clear_clock(SCRATCH_CLOCK);
        }
        Ok(())
    }
}
