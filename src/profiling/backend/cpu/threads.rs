//! The threads that kernels run on, and how work is cut for them.

use super::super::BackendError;

/// Below this many elements a kernel runs on the calling thread: waking others costs more.
const SERIAL_ELEMENTS: usize = 32 * 1024;

/// A pool of its own, so that nothing else in the process changes the timing.
pub struct Threads {
    pool: rayon::ThreadPool,
    count: usize,
}

impl Threads {
    /// Starts `count` threads (at least one).
    pub fn new(count: u32) -> Result<Threads, BackendError> {
        let count = count.max(1) as usize;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("vidur-kernel-{i}"))
            .build()
            .map_err(|e| BackendError::Lost(format!("cannot start {count} threads: {e}")))?;
        Ok(Threads { pool, count })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What faer is to use.
    pub fn par(&self) -> faer::Par {
        if self.count == 1 { faer::Par::Seq } else { faer::Par::rayon(self.count) }
    }

    /// Runs `f` on the pool: kernels inside it start without a hand-over between pools.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    /// Rows of `width` elements that one task takes, of `rows` in all: everything when it is
    /// little, else an even share.
    pub fn rows_per_task(&self, rows: usize, width: usize) -> usize {
        if self.count == 1 || rows * width < SERIAL_ELEMENTS {
            rows.max(1)
        } else {
            rows.div_ceil(self.count).max(1)
        }
    }
}
