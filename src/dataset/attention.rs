//! Rows of attention.csv that measure several sequences of unlike kinds, or several prompts.

use super::schema::{ATTENTION_MIXED, time_column};
use super::table::{Column, ReadError, Table, line};
use crate::spec::ops::Op;
use csv::ByteRecord;

/// Several prompts of one length on empty caches, processed together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PromptBatch {
    /// Prompts, at least 2.
    pub prompts: u64,
    /// Tokens of each.
    pub tokens: u64,
    /// Median time of attention in milliseconds.
    pub ms: f64,
}

/// A prompt chunk and decoding sequences in one attention kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixedAttention {
    /// Tokens in the cache before the chunk.
    pub kv: u64,
    /// Tokens of the chunk.
    pub chunk: u64,
    /// Decoding sequences, at least 1.
    pub decodes: u64,
    /// Tokens in the cache of each.
    pub decode_kv: u64,
    /// Median time in milliseconds.
    pub ms: f64,
    /// Line of the file.
    pub line: u64,
}

/// The columns that say what a row measures.
pub(super) struct Shape {
    pub batch: Column,
    pub chunk: Column,
    pub kv: Column,
}

impl Shape {
    /// Rows of several prompts on empty caches.
    pub fn several_prompts(
        &self,
        table: &Table<'_>,
        rows: &[&ByteRecord],
    ) -> Result<Vec<PromptBatch>, ReadError> {
        let Some(time) = table.optional(&time_column(Op::AttnPrefill, "median")) else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for row in rows {
            let (prompts, tokens) = (table.count(row, self.batch)?, table.count(row, self.chunk)?);
            if prompts > 1 && tokens > 0 && table.count(row, self.kv)? == 0 {
                let ms = table.time(row, time)?;
                found.extend(ms.map(|ms| PromptBatch { prompts, tokens, ms }));
            }
        }
        Ok(found)
    }

    /// Rows of a chunk with decoding sequences beside it; none where the file has no column for them.
    pub fn mixed(
        &self,
        table: &Table<'_>,
        rows: &[&ByteRecord],
    ) -> Result<Vec<MixedAttention>, ReadError> {
        let columns = (table.optional(BESIDE), table.optional(ATTENTION_MIXED));
        let (Some(beside), Some(time)) = columns else { return Ok(Vec::new()) };
        let decode_kv = table.column("decode_kv_cache_size", ATTENTION_MIXED)?;
        let mut found = Vec::new();
        for row in rows {
            let (chunk, decodes) = (table.count(row, self.chunk)?, table.count(row, beside)?);
            if chunk == 0 || decodes == 0 {
                continue;
            }
            if let Some(ms) = table.time(row, time)? {
                let (kv, decode_kv) = (table.count(row, self.kv)?, table.count(row, decode_kv)?);
                found.push(MixedAttention { kv, chunk, decodes, decode_kv, ms, line: line(row) });
            }
        }
        Ok(found)
    }

    /// The other rows: one kind of attention each.
    pub fn one_kind<'t>(
        &self,
        table: &Table<'_>,
        rows: Vec<&'t ByteRecord>,
    ) -> Result<Vec<&'t ByteRecord>, ReadError> {
        let Some(beside) = table.optional(BESIDE) else { return Ok(rows) };
        let mut alone = Vec::with_capacity(rows.len());
        for row in rows {
            if table.count(row, self.chunk)? == 0 || table.count(row, beside)? == 0 {
                alone.push(row);
            }
        }
        Ok(alone)
    }
}

/// Decoding sequences beside a prompt chunk.
const BESIDE: &str = "decode_batch_size";
