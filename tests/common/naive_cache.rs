//! The rules of the KV cache written down as plainly as they can be: lists that are searched from
//! their start. What `KvCache` does must be what this does.

use inflight::cache::{BlockHash, BlockOp};

/// A sequence's blocks.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Table {
    pub(crate) blocks: Vec<u32>,
    /// Leading blocks that have been registered, or were adopted.
    pub(crate) known: usize,
    /// Where it was moved to, while it is swapped out.
    pub(crate) host: Vec<u32>,
}

pub(crate) struct NaiveCache {
    block_size: usize,
    prefix_cache: bool,
    /// Front first.
    pub(crate) free: Vec<u32>,
    pub(crate) refs: Vec<u32>,
    /// Contents by name, the oldest first; duplicates side by side.
    pub(crate) names: Vec<(BlockHash, u32)>,
    pub(crate) evicted: u64,
    pub(crate) host_free: usize,
    num_host: usize,
    /// What the device was told since the last look.
    pub(crate) ops: Vec<BlockOp>,
}

impl NaiveCache {
    pub(crate) fn new(
        num_blocks: usize,
        block_size: usize,
        prefix_cache: bool,
        num_host_blocks: usize,
    ) -> Self {
        Self {
            block_size,
            prefix_cache,
            free: (1..num_blocks as u32).collect(),
            refs: vec![0; num_blocks],
            names: Vec::new(),
            evicted: 0,
            host_free: num_host_blocks,
            num_host: num_host_blocks,
            ops: Vec::new(),
        }
    }

    pub(crate) fn is_named(&self, block: u32) -> bool {
        self.names.iter().any(|&(_, named)| named == block)
    }

    fn forget(&mut self, block: u32) -> bool {
        let before = self.names.len();
        self.names.retain(|&(_, named)| named != block);
        self.names.len() < before
    }

    pub(crate) fn lookup(&self, hashes: &[BlockHash], max_tokens: usize) -> Vec<u32> {
        let find = |hash: &BlockHash| self.names.iter().find(|(h, _)| h == hash).map(|&(_, b)| b);
        hashes.iter().take(max_tokens / self.block_size).map_while(find).collect()
    }

    /// Blocks the free queue loses, or how many it lacks.
    pub(crate) fn blocks_needed(
        &self,
        table: &Table,
        hit: &[u32],
        write_from: usize,
        num_tokens: usize,
    ) -> usize {
        let sequence: Vec<u32> = table.blocks.iter().chain(hit).copied().collect();
        let revived = hit.iter().filter(|&&b| self.refs[b as usize] == 0).count();
        let written = sequence.iter().skip(write_from / self.block_size);
        // A hit will have this sequence as one more holder.
        let others = |&&b: &&u32| self.refs[b as usize] > u32::from(hit.is_empty());
        let copied = written.filter(others).count();
        let new = num_tokens.div_ceil(self.block_size).saturating_sub(sequence.len());
        revived + copied + new
    }

    /// The caller has made sure that the blocks are there.
    pub(crate) fn allocate(
        &mut self,
        table: &mut Table,
        hit: &[u32],
        write_from: usize,
        num_tokens: usize,
    ) {
        for &block in hit {
            self.free.retain(|&free| free != block);
            self.refs[block as usize] += 1;
        }
        table.blocks.extend(hit);
        table.known = table.known.max(hit.len());
        for i in write_from / self.block_size..table.blocks.len() {
            let block = table.blocks[i];
            if self.refs[block as usize] > 1 {
                let copy = self.pop();
                self.ops.push(BlockOp { kind: BlockOp::COPY, src: block, dst: copy });
                self.refs[block as usize] -= 1;
                table.blocks[i] = copy;
            } else {
                // Its content is about to change under its name.
                self.forget(block);
            }
            table.known = table.known.min(i);
        }
        while table.blocks.len() < num_tokens.div_ceil(self.block_size) {
            table.blocks.push(self.pop());
        }
    }

    fn pop(&mut self) -> u32 {
        let block = self.free.remove(0);
        self.evicted += u64::from(self.forget(block));
        self.refs[block as usize] = 1;
        block
    }

    /// Unnamed blocks to the front, the last one foremost; then named ones to the back, the last
    /// one first.
    fn release(&mut self, blocks: &[u32]) {
        blocks.iter().for_each(|&block| self.refs[block as usize] -= 1);
        let unheld = |&&block: &&u32| self.refs[block as usize] == 0;
        let (named, unnamed): (Vec<u32>, Vec<u32>) =
            blocks.iter().filter(unheld).partition(|&&block| self.is_named(block));
        unnamed.iter().for_each(|&block| self.free.insert(0, block));
        self.free.extend(named.iter().rev());
    }

    pub(crate) fn register(&mut self, table: &mut Table, hashes: &[BlockHash], num_tokens: usize) {
        let full = (num_tokens / self.block_size).min(hashes.len()).min(table.blocks.len());
        if !self.prefix_cache {
            return;
        }
        for (&block, &hash) in table.blocks.iter().zip(hashes).take(full).skip(table.known) {
            if !self.is_named(block) {
                self.names.push((hash, block));
            }
        }
        table.known = table.known.max(full);
    }

    pub(crate) fn unregister(&mut self, table: &mut Table, num_tokens: usize) {
        let full = num_tokens / self.block_size;
        if self.prefix_cache && table.known > full {
            table.blocks[full..table.known].iter().for_each(|&block| {
                self.forget(block);
            });
            table.known = full;
        }
    }

    pub(crate) fn truncate(&mut self, table: &mut Table, num_tokens: usize) {
        self.unregister(table, num_tokens);
        let keep = num_tokens.div_ceil(self.block_size).min(table.blocks.len());
        let tail = table.blocks.split_off(keep);
        table.known = table.known.min(keep);
        self.release(&tail);
    }

    pub(crate) fn fork(&mut self, table: &Table) -> Table {
        table.blocks.iter().for_each(|&block| self.refs[block as usize] += 1);
        table.clone()
    }

    pub(crate) fn free(&mut self, table: &mut Table) {
        self.release(&table.blocks);
        self.host_free += table.host.len();
        *table = Table::default();
    }

    /// Which host blocks it takes is the cache's own affair: `host` says which it took.
    pub(crate) fn swap_out(&mut self, table: &mut Table, host: &[u32]) {
        for (&src, &dst) in table.blocks.iter().zip(host) {
            self.ops.push(BlockOp { kind: BlockOp::SWAP_OUT, src, dst });
        }
        self.host_free -= table.blocks.len();
        self.release(&table.blocks);
        *table = Table { host: host.to_vec(), ..Table::default() };
    }

    pub(crate) fn swap_in(&mut self, table: &mut Table) {
        for src in std::mem::take(&mut table.host) {
            let dst = self.pop();
            self.ops.push(BlockOp { kind: BlockOp::SWAP_IN, src, dst });
            table.blocks.push(dst);
            self.host_free += 1;
        }
    }

    pub(crate) fn reset(&mut self) -> bool {
        let idle = self.free.len() + 1 == self.refs.len() && self.host_free == self.num_host;
        if idle {
            self.names.clear();
        }
        idle
    }
}
