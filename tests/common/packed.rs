//! A step's ragged batch against the rows, tables and tokens it was built from.

use inflight::Token;
use inflight::batch::{DenseTable, RaggedBatch};
use inflight::scheduler::{Row, Step};

/// What a row must look like.
pub(crate) struct Expected<'a> {
    pub(crate) row: &'a Row,
    pub(crate) table: &'a [u32],
    /// Its inputs, `PENDING_TOKEN` where nobody knows them yet.
    pub(crate) tokens: Vec<Token>,
}

pub(crate) fn check(
    batch: &RaggedBatch,
    dense: Option<&DenseTable>,
    step: &Step,
    rows: &[Expected<'_>],
    block_size: usize,
) {
    let header = batch.header();
    let id = u64::from(header.step[0]) | u64::from(header.step[1]) << 32;
    assert_eq!(id, step.id().0);
    assert_eq!(header.num_rows as usize, rows.len());
    assert!(header.padded_rows >= header.num_rows);
    assert_eq!(header.num_tokens as usize, step.num_tokens());
    assert_eq!(header.num_logits as usize, step.num_logits());
    assert_eq!(batch.ops(), step.block_ops());
    let (mut token, mut index, mut logits) = (0, 0, Vec::new());
    for (i, Expected { row, table, tokens }) in rows.iter().enumerate() {
        let (start, n) = (row.num_computed as usize, row.num_tokens as usize);
        let end = start + n;
        let mine = token..token + n;
        let what = format!("{row:?} in {:?}", step.id());
        assert_eq!(&batch.tokens()[mine.clone()], tokens, "tokens of {what}");
        let positions = start as u32..end as u32;
        assert!(batch.positions()[mine.clone()].iter().copied().eq(positions), "{what}");
        let slot = |at: usize| table[at / block_size] as usize * block_size + at % block_size;
        let slots: Vec<i64> = (start..end).map(|at| slot(at) as i64).collect();
        assert_eq!(&batch.slot_mapping()[mine], slots, "slots of {what}");
        let blocks = end.div_ceil(block_size);
        let read: Vec<u32> =
            batch.kv_indices()[index..index + blocks].iter().map(|block| block.0).collect();
        assert_eq!(read, table[..blocks], "blocks of {what}");
        assert_eq!(batch.qo_indptr()[i] as usize, token);
        assert_eq!(batch.kv_indptr()[i] as usize, index);
        assert_eq!(batch.kv_last_page_len()[i] as usize, (end - 1) % block_size + 1, "{what}");
        if let Some(dense) = dense {
            let line = &dense.blocks()[i * dense.width()..][..dense.width()];
            let line: Vec<u32> = line.iter().map(|block| block.0).collect();
            assert_eq!(line[..blocks], table[..blocks], "dense blocks of {what}");
        }
        (token, index) = (token + n, index + blocks);
        if row.samples {
            logits.extend((token - 1 - row.num_draft as usize..token).map(|at| at as u32));
        }
    }
    assert_eq!(batch.logits_indices(), logits);
    assert!(batch.qo_indptr()[rows.len()..].iter().all(|&at| at as usize == token));
    assert!(batch.kv_indptr()[rows.len()..].iter().all(|&at| at as usize == index));
    assert_eq!(header.num_kv_blocks as usize, index);
    let longest = rows.iter().map(|e| e.row.num_computed + e.row.num_tokens).max();
    assert_eq!(header.max_kv_len, longest.unwrap_or(0));
    let widest = rows.iter().map(|e| e.row.num_tokens).max();
    assert_eq!(header.max_q_len, widest.unwrap_or(0));
    assert_eq!(batch.pending().len(), step.sources().len());
    for (pending, source) in batch.pending().iter().zip(step.sources()) {
        assert_eq!(pending.token, batch.qo_indptr()[source.row as usize]);
        assert_eq!(u64::from(pending.steps_back), step.id().0 - source.step.0);
        assert_eq!(pending.logits, source.logits);
    }
}
