//! Collectives among threads of this machine, through shared memory: what a CPU deployment split
//! over sockets or processes would pay at best. Each worker owns its buffer; what it hands over is
//! copied into a mailbox and out of it again, as between processes. Sums go round a ring in two
//! phases (reduce-scatter, then all-gather), each step of which moves one piece per worker.

use crate::dataset::network::Collective;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Name for manifests. The number rises when a change makes it faster or slower.
pub const NAME: &str = "vidur-ring 1";

/// Bytes of an element.
const ELEMENT: u64 = 4;

/// Spins before a waiting thread gives its core away.
const SPINS: u32 = 2000;

/// A barrier that spins: waking a sleeping thread takes longer than most messages.
struct Barrier {
    workers: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
}

impl Barrier {
    fn wait(&self) {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.workers {
            self.arrived.store(0, Ordering::Release);
            self.round.store(round + 1, Ordering::Release);
            return;
        }
        let mut spins = 0;
        while self.round.load(Ordering::Acquire) == round {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// What the workers share.
struct Ring {
    mailboxes: Vec<Mutex<Vec<f32>>>,
    barrier: Barrier,
}

impl Ring {
    fn new(workers: usize, piece: usize) -> Ring {
        Ring {
            mailboxes: (0..workers).map(|_| Mutex::new(vec![0.0; piece])).collect(),
            barrier: Barrier { workers, arrived: AtomicUsize::new(0), round: AtomicUsize::new(0) },
        }
    }

    fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// The elements of piece `index`, counted round the ring.
    fn piece(&self, len: usize, index: usize) -> std::ops::Range<usize> {
        let (n, index) = (self.workers(), index % self.workers());
        index * len / n..(index + 1) * len / n
    }

    fn post(&self, rank: usize, data: &[f32]) {
        let mut mailbox = self.mailboxes[rank].lock().unwrap_or_else(PoisonError::into_inner);
        mailbox[..data.len()].copy_from_slice(data);
    }

    fn fetch(&self, rank: usize, f: impl FnOnce(&[f32])) {
        f(&self.mailboxes[rank].lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// One phase round the ring: in step `s`, worker `r` hands on piece `r + first - s`.
    fn around(&self, rank: usize, buffer: &mut [f32], first: usize, add: bool) {
        let n = self.workers();
        for step in 0..n - 1 {
            let out = self.piece(buffer.len(), rank + first + n - step);
            self.post(rank, &buffer[out]);
            self.barrier.wait();
            let into = self.piece(buffer.len(), rank + first + n - step - 1);
            self.fetch((rank + n - 1) % n, |mail| {
                let mine = &mut buffer[into];
                let mail = &mail[..mine.len()];
                if add {
                    mine.iter_mut().zip(mail).for_each(|(a, b)| *a += b);
                } else {
                    mine.copy_from_slice(mail);
                }
            });
            self.barrier.wait();
        }
    }

    /// One execution by worker `rank`; ends when every worker has ended.
    fn execute(&self, collective: Collective, rank: usize, buffer: &mut [f32]) {
        let n = self.workers();
        match collective {
            Collective::AllReduce => {
                self.around(rank, buffer, 0, true);
                self.around(rank, buffer, 1, false);
            }
            // After the sum of pieces, worker r holds piece r + 1.
            Collective::ReduceScatter => self.around(rank, buffer, 0, true),
            Collective::AllGather => self.around(rank, buffer, 0, false),
            Collective::AllToAll => {
                self.post(rank, buffer);
                self.barrier.wait();
                for from in (0..n).filter(|&from| from != rank) {
                    let (mine, theirs) =
                        (self.piece(buffer.len(), from), self.piece(buffer.len(), rank));
                    self.fetch(from, |mail| {
                        let len = mine.len().min(theirs.len());
                        buffer[mine][..len].copy_from_slice(&mail[theirs][..len]);
                    });
                }
                self.barrier.wait();
            }
            Collective::SendRecv => {
                if rank == 0 {
                    self.post(0, buffer);
                }
                self.barrier.wait();
                if rank == 1 {
                    self.fetch(0, |mail| buffer.copy_from_slice(&mail[..buffer.len()]));
                }
                self.barrier.wait();
            }
        }
    }
}

/// How long to measure one size.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Samples at least.
    pub repeats: u32,
    /// Keep sampling this long.
    pub min_time: Duration,
}

/// Milliseconds of `collective` among `workers` threads with a message of `bytes`, by the first
/// worker's clock, from all ready to all done.
///
/// # Errors
/// One line, when this makes no sense: fewer than two workers, or more than two for a hand-over.
pub fn measure(
    collective: Collective,
    workers: u32,
    bytes: u64,
    effort: Effort,
) -> Result<Vec<f64>, String> {
    check(collective, workers)?;
    let n = workers as usize;
    let len = (bytes.div_ceil(ELEMENT) as usize).max(n);
    let ring = Ring::new(n, len);
    let stop = AtomicBool::new(false);
    let samples = std::thread::scope(|scope| {
        for rank in 1..n {
            let (ring, stop) = (&ring, &stop);
            scope.spawn(move || {
                let mut buffer = vec![0.0_f32; len];
                loop {
                    ring.barrier.wait();
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    ring.execute(collective, rank, &mut buffer);
                }
            });
        }
        let mut buffer = vec![0.0_f32; len];
        let mut taken = Vec::new();
        let begin = Instant::now();
        // Two executions to touch every page.
        for execution in 0.. {
            let enough =
                taken.len() >= effort.repeats.max(1) as usize && begin.elapsed() >= effort.min_time;
            stop.store(enough, Ordering::Release);
            ring.barrier.wait();
            if enough {
                break;
            }
            let start = Instant::now();
            ring.execute(collective, 0, &mut buffer);
            let ms = start.elapsed().as_secs_f64() * 1e3;
            if execution >= 2 {
                taken.push(ms);
            }
        }
        taken
    });
    Ok(samples)
}

fn check(collective: Collective, workers: u32) -> Result<(), String> {
    match (collective, workers) {
        (_, 0 | 1) => Err("one worker has nobody to talk to; give at least 2".into()),
        (Collective::SendRecv, n) if n > 2 => {
            Err(format!("send_recv is between 2 workers, not {n}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every worker's buffer after one execution; worker `r` starts with `10 r + i` at element `i`.
    fn once(collective: Collective, n: usize, len: usize) -> Vec<Vec<f32>> {
        let ring = Ring::new(n, len);
        std::thread::scope(|scope| {
            let work = |rank: usize| {
                let ring = &ring;
                move || {
                    let mut buffer: Vec<f32> = (0..len).map(|i| (10 * rank + i) as f32).collect();
                    ring.execute(collective, rank, &mut buffer);
                    buffer
                }
            };
            let threads: Vec<_> = (0..n).map(|rank| scope.spawn(work(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_are_sums_whatever_the_number_of_workers_and_elements() {
        for n in 2..5 {
            for len in [n, 7, 64] {
                let expected: Vec<f32> =
                    (0..len).map(|i| (0..n).map(|r| (10 * r + i) as f32).sum()).collect();
                for buffer in once(Collective::AllReduce, n, len) {
                    assert_eq!(buffer, expected, "{n} workers, {len} elements");
                }
                // Each worker has its piece of the sum.
                let ring = Ring::new(n, len);
                for (rank, buffer) in once(Collective::ReduceScatter, n, len).iter().enumerate() {
                    let piece = ring.piece(len, rank + 1);
                    assert_eq!(buffer[piece.clone()], expected[piece]);
                }
            }
        }
    }

    #[test]
    fn pieces_reach_everybody() {
        let (n, len) = (3, 9);
        let ring = Ring::new(n, len);
        for buffer in once(Collective::AllGather, n, len) {
            for from in 0..n {
                let piece = ring.piece(len, from);
                let expected: Vec<f32> = piece.clone().map(|i| (10 * from + i) as f32).collect();
                assert_eq!(buffer[piece], expected);
            }
        }
        for (rank, buffer) in once(Collective::AllToAll, n, len).iter().enumerate() {
            for from in 0..n {
                let theirs = ring.piece(len, rank);
                let expected: Vec<f32> = theirs.map(|i| (10 * from + i) as f32).collect();
                assert_eq!(buffer[ring.piece(len, from)], expected);
            }
        }
        assert_eq!(once(Collective::SendRecv, 2, 4)[1], [0.0, 1.0, 2.0, 3.0]);
    }

    #[test]
    fn two_workers_are_timed_for_real_and_more_bytes_take_longer() {
        let effort = Effort { repeats: 5, min_time: Duration::from_millis(5) };
        let median = |bytes| {
            let ms = measure(Collective::AllReduce, 2, bytes, effort).unwrap();
            assert!(ms.len() >= 5 && ms.iter().all(|&ms| ms > 0.0));
            crate::stats::median(&ms).unwrap()
        };
        // A thousand times the bytes: the difference survives a busy machine.
        assert!(median(16 << 20) > 4.0 * median(16 << 10));
        assert!(measure(Collective::AllReduce, 1, 64, effort).is_err());
        assert!(measure(Collective::SendRecv, 3, 64, effort).is_err());
    }
}
