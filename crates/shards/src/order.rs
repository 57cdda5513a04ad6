//! The order in which samples are seen: a pure function of (seed, position).
//!
//! Epoch e = ⌊position / N⌋ shows every sample once. A set is cut into chunks of at most 256 samples that lie side by
//! side in one tar (a published shard is one chunk). In each epoch the chunks are permuted, then taken together in windows
//! of `window` chunks, and the samples of a window are permuted. So a reader is busy in at most `window` regions of the
//! disk at a time. The mixing radius: a sample moves freely within its window, by up to 256·`window` positions; which
//! chunks share a window changes with the epoch. A window of all chunks is a uniform shuffle.

use std::sync::{Arc, Mutex, PoisonError};

use fewstep_tensor::random::{Purpose, Stream};

/// Samples in a chunk, at most.
pub const CHUNK: usize = 256;
/// Sub-streams of [`Purpose::DataOrder`]: the permutation of chunks, and those of windows.
const CHUNKS: u32 = 1;
const WINDOWS: u32 = 2;

/// Samples `start..start + len` in the set's own order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    start: usize,
    len: usize,
}

/// The order of a set of `len` samples.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    window: usize,
    chunks: Vec<Chunk>,
    len: usize,
    // The last window asked for: positions come mostly one after another. It changes no answer.
    epoch: Mutex<Option<Arc<Epoch>>>,
    last: Mutex<Option<Arc<Window>>>,
}

#[derive(Debug)]
struct Epoch {
    number: u64,
    chunks: Vec<Chunk>,
    /// The first position of each window, within the epoch.
    starts: Vec<usize>,
}

#[derive(Debug)]
struct Window {
    epoch: u64,
    number: usize,
    samples: Vec<usize>,
}

impl Order {
    /// The order of a set whose tars hold `counts` samples each, at least one in all; `window` ≥ 1 chunks.
    pub fn new(seed: u64, counts: &[usize], window: usize) -> Self {
        let (mut chunks, mut start) = (Vec::new(), 0);
        for &count in counts {
            for first in (0..count).step_by(CHUNK) {
                let len = CHUNK.min(count - first);
                chunks.push(Chunk { start: start + first, len });
            }
            start += count;
        }
        Order { seed, window: window.max(1), chunks, len: start, epoch: Mutex::new(None), last: Mutex::new(None) }
    }

    /// The number of samples in an epoch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Which sample, by its place in the set, is seen at a position (below N·2³²). The set must not be empty.
    pub fn index(&self, position: u64) -> usize {
        let (epoch, place) = (position / self.len as u64, (position % self.len as u64) as usize);
        let epoch = self.epoch(epoch);
        let number = epoch.starts.partition_point(|&s| s <= place) - 1;
        let window = self.window(&epoch, number);
        window.samples[place - epoch.starts[number]]
    }

    fn epoch(&self, number: u64) -> Arc<Epoch> {
        let mut last = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(epoch) if epoch.number == number => Arc::clone(epoch),
            _ => {
                let mut chunks = self.chunks.clone();
                shuffle(Stream::new(self.seed, Purpose::DataOrder, number).step(CHUNKS), 0, &mut chunks);
                let lens = chunks.chunks(self.window).map(|w| w.iter().map(|c| c.len).sum::<usize>());
                let starts = lens.scan(0, |at, len| Some(std::mem::replace(at, *at + len))).collect();
                Arc::clone(last.insert(Arc::new(Epoch { number, chunks, starts })))
            }
        }
    }

    fn window(&self, epoch: &Epoch, number: usize) -> Arc<Window> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some(window) if (window.epoch, window.number) == (epoch.number, number) => Arc::clone(window),
            _ => {
                let first = number * self.window;
                let chunks = &epoch.chunks[first..epoch.chunks.len().min(first + self.window)];
                let mut samples: Vec<usize> = chunks.iter().flat_map(|c| c.start..c.start + c.len).collect();
                let stream = Stream::new(self.seed, Purpose::DataOrder, epoch.number).step(WINDOWS);
                shuffle(stream, number as u64, &mut samples);
                Arc::clone(last.insert(Arc::new(Window { epoch: epoch.number, number, samples })))
            }
        }
    }
}

/// Fisher–Yates; 53-bit draws leave a bias of at most n/2⁵³.
fn shuffle<T>(stream: Stream, sample: u64, items: &mut [T]) {
    let n = items.len();
    for (i, u) in stream.uniform(sample, n).into_iter().enumerate() {
        let j = i + (u * (n - i) as f64) as usize;
        items.swap(i, j.min(n - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: [usize; 5] = [256, 256, 3, 700, 1];
    const N: usize = 1216;

    #[test]
    fn every_epoch_shows_every_sample_once() {
        for window in [1, 3, 100] {
            let order = Order::new(7, &COUNTS, window);
            for epoch in [0, 1, 5_000_000] {
                let mut seen: Vec<_> = (0..N as u64).map(|p| order.index(epoch * N as u64 + p)).collect();
                assert!(!seen.is_sorted());
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..N), "window {window}, epoch {epoch}");
            }
        }
    }

    #[test]
    fn an_index_depends_on_seed_and_position_alone_whatever_was_asked_before() {
        let order = Order::new(7, &COUNTS, 2);
        let want: Vec<_> = (0..3 * N as u64).map(|p| order.index(p)).collect();
        for p in (0..3 * N as u64).rev().step_by(17) {
            assert_eq!(Order::new(7, &COUNTS, 2).index(p), want[p as usize]);
            assert_eq!(order.index(p), want[p as usize]);
        }
        assert_ne!((0..N as u64).map(|p| Order::new(8, &COUNTS, 2).index(p)).collect::<Vec<_>>(), want[..N]);
        assert_ne!(want[..N], want[N..2 * N]);
    }

    #[test]
    fn a_stretch_of_positions_touches_no_more_chunks_than_a_window_holds() {
        let order = Order::new(1, &[CHUNK; 12], 3);
        for window in 0..4 {
            let places = (0..3 * CHUNK as u64).map(|p| order.index(window * 3 * CHUNK as u64 + p) / CHUNK);
            let mut chunks: Vec<_> = places.collect();
            chunks.sort_unstable();
            chunks.dedup();
            assert_eq!(chunks.len(), 3);
        }
    }
}
