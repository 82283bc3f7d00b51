//! The rectangle of a static batch: what a step computes, padding included.

use inflight::batch::RaggedBatch;
use inflight::kernels::BatchView;
use inflight::scheduler::Padding;
use inflight::{BlockId, Error, Result};

/// The rows of a static batch, all as long as the longest.
///
/// A row that computes something has its own block table, lengthened. No memory was reserved for
/// padding, so what a table lacks are other blocks of the pool, one after the other and then from
/// the start: reading them is as much traffic, and what they hold changes no figure.
#[derive(Debug, Default)]
pub(super) struct Rectangle {
    qo_indptr: Vec<u32>,
    kv_indptr: Vec<u32>,
    kv_indices: Vec<BlockId>,
    kv_last_page_len: Vec<u32>,
    block_size: usize,
    /// Positions of the tokens that only pad.
    positions: Vec<u32>,
    /// The last row, from 1, that has a block.
    holder: Vec<u32>,
    /// The block that fills the next gap.
    next: u32,
}

impl Rectangle {
    /// Makes the rectangle around the rows of `batch`, in a pool of `num_blocks` blocks.
    ///
    /// # Errors
    /// A row does not fit the pool. A static batch's always do: the longest prompt and the longest
    /// output are of two of its requests, or of one, and what those hold at the same time is no
    /// less, even if one begins as the other.
    pub(super) fn build(
        &mut self,
        batch: &RaggedBatch,
        padding: Padding,
        num_blocks: usize,
    ) -> Result<()> {
        let block_size = batch.header().block_size;
        let (q_len, kv_len) = (padding.num_tokens, padding.kv_len);
        let blocks = kv_len.div_ceil(block_size) as usize;
        if blocks >= num_blocks || q_len > kv_len {
            let reason = format!("padding to {kv_len} tokens does not fit {num_blocks} blocks");
            return Err(Error::Device(reason));
        }
        self.block_size = block_size as usize;
        self.kv_indices.clear();
        self.positions.clear();
        self.holder.clear();
        self.holder.resize(num_blocks, 0);
        self.holder[0] = u32::MAX;
        let real = batch.header().num_rows as usize;
        for row in 0..padding.rows as usize {
            let bounds = |indptr: &[u32]| indptr[row] as usize..indptr[row + 1] as usize;
            let (mut own, mut computed): (&[BlockId], u32) = (&[], 0);
            if row < real {
                own = &batch.kv_indices()[bounds(batch.kv_indptr())];
                computed = bounds(batch.qo_indptr()).len() as u32;
            }
            self.add_row(row as u32 + 1, own, blocks);
            self.positions.extend(kv_len - q_len + computed..kv_len);
        }
        let rows = padding.rows;
        self.qo_indptr.clear();
        self.qo_indptr.extend((0..=rows).map(|row| row * q_len));
        self.kv_indptr.clear();
        self.kv_indptr.extend((0..=rows).map(|row| row * blocks as u32));
        self.kv_last_page_len.clear();
        self.kv_last_page_len.resize(rows as usize, (kv_len - 1) % block_size + 1);
        Ok(())
    }

    /// A table that begins with `own` and has `blocks` blocks, none of them twice.
    fn add_row(&mut self, row: u32, own: &[BlockId], blocks: usize) {
        self.kv_indices.extend_from_slice(own);
        own.iter().for_each(|block| self.holder[block.index()] = row);
        for _ in own.len()..blocks {
            // There is one: the pool has `blocks` blocks besides the null block.
            let free = loop {
                self.next = (self.next + 1) % self.holder.len() as u32;
                let holder = &mut self.holder[self.next as usize];
                if self.next != 0 && *holder != row {
                    *holder = row;
                    break BlockId(self.next);
                }
            };
            self.kv_indices.push(free);
        }
    }

    /// What attention computes.
    pub(super) fn view(&self) -> BatchView<'_> {
        BatchView {
            qo_indptr: &self.qo_indptr,
            kv_indptr: &self.kv_indptr,
            kv_indices: &self.kv_indices,
            kv_last_page_len: &self.kv_last_page_len,
            block_size: self.block_size,
        }
    }

    /// The positions of those of its tokens that belong to no request.
    pub(super) fn positions(&self) -> &[u32] {
        &self.positions
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Three rows of two or three blocks around none at all, in pools of 4 to 40 blocks.
    #[test]
    fn tables_hold_no_block_twice() {
        let mut rectangle = Rectangle::default();
        for num_blocks in 4..40 {
            for (own, blocks) in [(&[][..], 3), (&[BlockId(2)], 3), (&[BlockId(3), BlockId(1)], 2)]
            {
                rectangle.kv_indices.clear();
                rectangle.holder = vec![0; num_blocks];
                for row in 1..4 {
                    rectangle.add_row(row, own, blocks);
                }
                for table in rectangle.kv_indices.chunks(blocks) {
                    let distinct: BTreeSet<_> = table.iter().collect();
                    assert!(distinct.len() == blocks && !distinct.contains(&BlockId::NULL));
                    assert!(table.starts_with(own) && table.iter().all(|b| b.index() < num_blocks));
                }
            }
        }
    }
}
