//! Names for the contents of full blocks.
//!
//! A block's hash covers its tokens and, through its parent, everything before it. Equal hashes
//! stand for equal contents, so a collision would serve one user another's cache: the hash is
//! SHA-256. A chain is one Merkle-Damgard iteration over the tokens, the parent being the chaining
//! value, so that 16 tokens cost one compression; its start, which covers block size, salt and
//! adapter, takes the place of the initial value. A block with content of its own behind some
//! tokens (images) is hashed apart, with padding and tag, and so is never the same as a plain one.

use sha2::digest::generic_array::GenericArray;
use sha2::{Digest, Sha256, compress256};

use crate::types::Token;

/// The name of a full block's content, prefix included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct BlockHash(pub [u8; 32]);

impl BlockHash {
    /// 32 of its bits: all are equally good, so any serve to find it in a table.
    pub(super) fn tag(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }
}

/// What decides, besides the tokens, a block's content. Each kind has its own domain: an adapter
/// named like a salt never meets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ExtraKey {
    /// Requests share cached blocks only with requests of the same salt.
    Salt(Vec<u8>),
    /// The adapter (LoRA) the request runs with.
    Adapter(Vec<u8>),
    /// Content behind placeholder tokens, such as an image: token range and identity.
    Content {
        /// First token position it covers.
        start: u32,
        /// Tokens it covers.
        len: u32,
        /// Names the content, a digest for example.
        id: Vec<u8>,
    },
}

/// The hashes of a sequence's full blocks, extended as it grows.
#[derive(Clone, Debug)]
pub struct HashChain {
    root: BlockHash,
    block_size: usize,
    contents: Vec<(u32, u32, Vec<u8>)>,
    hashes: Vec<BlockHash>,
}

impl HashChain {
    /// An empty chain for sequences in blocks of `block_size` tokens (at least 1; 0 reads as 1) under
    /// these keys.
    #[must_use]
    pub fn new(block_size: usize, extra_keys: &[ExtraKey]) -> Self {
        let mut root = Sha256::new_with_prefix(b"inflight v1 kv block chain");
        root.update((block_size as u64).to_le_bytes());
        let mut contents = Vec::new();
        for key in extra_keys {
            match key {
                ExtraKey::Salt(salt) => tagged(&mut root, 1, salt),
                ExtraKey::Adapter(name) => tagged(&mut root, 2, name),
                ExtraKey::Content { start, len, id } => contents.push((*start, *len, id.clone())),
            }
        }
        let block_size = block_size.max(1);
        Self { root: BlockHash(root.finalize().into()), block_size, contents, hashes: Vec::new() }
    }

    /// Hashes of the full blocks known so far.
    #[must_use]
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// Makes room for sequences of `num_tokens`, so that `extend` does not allocate.
    pub fn reserve(&mut self, num_tokens: usize) {
        self.hashes.reserve((num_tokens / self.block_size).saturating_sub(self.hashes.len()));
    }

    /// Hashes the blocks that `tokens`, the sequence from its start, fills and are not yet known.
    pub fn extend(&mut self, tokens: &[Token]) {
        let block_size = self.block_size;
        let known = self.hashes.len();
        if (known + 1) * block_size > tokens.len() {
            return;
        }
        let mut parent = self.hashes.last().copied().unwrap_or(self.root);
        for (i, block) in tokens.chunks_exact(block_size).enumerate().skip(known) {
            parent = self.link(parent, (i * block_size) as u32, block);
            self.hashes.push(parent);
        }
    }

    /// Forgets the hashes of blocks that the first `num_tokens` tokens do not fill.
    pub fn truncate(&mut self, num_tokens: usize) {
        self.hashes.truncate(num_tokens / self.block_size);
    }

    fn link(&self, parent: BlockHash, start: u32, block: &[Token]) -> BlockHash {
        let end = start.saturating_add(block.len() as u32);
        let inside =
            |&&(at, len, _): &&(u32, u32, Vec<u8>)| at < end && start < at.saturating_add(len);
        let mut contents = self.contents.iter().filter(inside).peekable();
        if contents.peek().is_none() {
            return compress(parent, block);
        }
        let mut link = Sha256::new_with_prefix(b"inflight v1 kv block with content");
        link.update(compress(parent, block).0);
        for (at, _, id) in contents {
            // The offset may be negative: content that began in an earlier block.
            link.update((i64::from(*at) - i64::from(start)).to_le_bytes());
            tagged(&mut link, 3, id);
        }
        BlockHash(link.finalize().into())
    }
}

/// One iteration over the tokens, the last 64 bytes filled with zeros: the block size is in the
/// chain's start, so zeros are never taken for tokens.
fn compress(parent: BlockHash, block: &[Token]) -> BlockHash {
    let mut state: [u32; 8] = bytemuck::cast(parent.0);
    let bytes: &[u8] = bytemuck::cast_slice(block);
    let (whole, rest) = bytes.as_chunks::<64>();
    for chunk in whole {
        compress256(&mut state, &[*GenericArray::from_slice(chunk)]);
    }
    if !rest.is_empty() {
        let mut chunk = [0; 64];
        chunk[..rest.len()].copy_from_slice(rest);
        compress256(&mut state, &[GenericArray::from(chunk)]);
    }
    BlockHash(bytemuck::cast(state))
}

/// Tag and length first: no two lists of keys are the same bytes.
fn tagged(hasher: &mut Sha256, tag: u8, bytes: &[u8]) {
    hasher.update([tag]);
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(keys: &[ExtraKey], tokens: &[Token]) -> Vec<BlockHash> {
        let mut chain = HashChain::new(4, keys);
        chain.extend(tokens);
        chain.hashes().to_vec()
    }

    #[test]
    fn only_full_blocks_have_hashes_and_growing_adds_to_them() {
        let tokens: Vec<Token> = (0..10).collect();
        let whole = chain(&[], &tokens);
        assert_eq!(whole.len(), 2);
        let mut grown = HashChain::new(4, &[]);
        for n in 0..=tokens.len() {
            grown.extend(&tokens[..n]);
        }
        assert_eq!(grown.hashes(), whole);
    }

    #[test]
    fn a_hash_covers_all_that_came_before() {
        let a = chain(&[], &[1, 2, 3, 4, 5, 6, 7, 8]);
        let b = chain(&[], &[1, 2, 3, 9, 5, 6, 7, 8]);
        assert_ne!(a[0], b[0]);
        assert_ne!(a[1], b[1], "same tokens after another prefix");
        assert_ne!(a[0], chain(&[], &[5, 6, 7, 8])[0], "same tokens at another place");
    }

    #[test]
    fn domains_are_apart() {
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8];
        let id = || b"x".to_vec();
        let content = |start| ExtraKey::Content { start, len: 2, id: id() };
        let variants = [
            vec![],
            vec![ExtraKey::Salt(id())],
            vec![ExtraKey::Adapter(id())],
            vec![ExtraKey::Salt(b"x2".to_vec())],
            vec![ExtraKey::Salt(vec![]), ExtraKey::Adapter(id())],
            vec![content(1)],
            vec![content(2)],
        ];
        let first: Vec<_> = variants.iter().map(|keys| chain(keys, &tokens)[0]).collect();
        for (i, a) in first.iter().enumerate() {
            assert!(first[..i].iter().all(|b| a != b), "variant {i} collides");
        }
        // Content touches only the blocks it covers (and, by the chain, those after).
        let late = chain(&[ExtraKey::Content { start: 5, len: 9, id: id() }], &tokens);
        assert_eq!(late[0], first[0]);
        assert_ne!(late[1], chain(&[], &tokens)[1]);
    }

    #[test]
    fn blocks_of_any_size_have_hashes_of_their_own() {
        let tokens: Vec<Token> = (0..96).collect();
        let mut seen = Vec::new();
        for block_size in [1, 3, 16, 17, 32, 48] {
            let mut chain = HashChain::new(block_size, &[]);
            chain.extend(&tokens);
            assert_eq!(chain.hashes().len(), 96 / block_size);
            seen.extend_from_slice(chain.hashes());
        }
        let all = seen.len();
        seen.sort_by_key(|hash| hash.0);
        seen.dedup();
        assert_eq!(seen.len(), all);
    }

    /// The chain is what SHA-256 does, from another start: checked with the whole function, whose
    /// own start and padding are known (FIPS 180-4).
    #[test]
    fn a_link_is_an_iteration_of_sha256() {
        let initial: [u32; 8] = [
            0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
            0x5be0cd19,
        ];
        let message: Vec<u8> = (0..64).collect();
        let mut padding = [0u8; 64];
        padding[0] = 0x80;
        padding[56..].copy_from_slice(&512u64.to_be_bytes());
        let words = |bytes: &[u8]| -> Vec<Token> {
            bytes.as_chunks().0.iter().map(|word| Token::from_le_bytes(*word)).collect()
        };
        let first = compress(BlockHash(bytemuck::cast(initial)), &words(&message));
        let last = compress(first, &words(&padding));
        let state: [u32; 8] = bytemuck::cast(last.0);
        let digest: Vec<u8> = state.iter().flat_map(|word| word.to_be_bytes()).collect();
        assert_eq!(digest, Sha256::digest(&message).to_vec());
    }
}
