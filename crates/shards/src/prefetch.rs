//! Reading ahead in the background.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use crate::reader::{Example, ShardReader};
use crate::{Error, Result};

struct State {
    ready: VecDeque<(u64, Result<Example>)>,
    /// The next position to be read.
    next: u64,
    /// Counts seeks: what was read for an earlier one is thrown away.
    seeks: u64,
    /// The owner has gone.
    closed: bool,
    /// The background thread has gone.
    dead: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// A set's samples, read ahead of the position asked for by one background thread, which ends with its owner.
pub struct Prefetcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Says that the thread is gone, however it went.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.lock().dead = true;
        self.0.changed.notify_all();
    }
}

impl Prefetcher {
    /// Reads from `position` on, at most `depth` ≥ 1 samples ahead of the one asked for last.
    ///
    /// # Errors
    /// If the system gives no thread, or the depth is 0.
    pub fn new(reader: Arc<ShardReader>, position: u64, depth: usize) -> Result<Self> {
        if depth == 0 {
            let (what, expected) = ("samples read ahead", "1 or more".to_string());
            return Err(Error::Setting { what, expected, got: "0".into() });
        }
        let state = State { ready: VecDeque::new(), next: position, seeks: 0, closed: false, dead: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let farewell = Farewell(Arc::clone(&shared));
        let work = move || read_ahead(&farewell.0, &reader, depth);
        let thread =
            Builder::new().name("fewstep-shards".into()).spawn(work).map_err(Error::io("a thread".as_ref()))?;
        Ok(Prefetcher { shared, thread: Some(thread) })
    }

    /// The sample at a position: what [`ShardReader::sample`] gives, errors included. Positions in turn come from what was
    /// read ahead; any other one is a seek, and reading goes on from there.
    ///
    /// # Errors
    /// As [`ShardReader::sample`]; the positions after a bad one are read all the same.
    pub fn get(&mut self, position: u64) -> Result<Example> {
        let mut state = self.shared.lock();
        // Skipping a little forward uses what is there.
        while state.ready.front().is_some_and(|(p, _)| *p < position) {
            state.ready.pop_front();
        }
        let coming = state.ready.front().map_or(state.next, |(p, _)| *p);
        // A position being read now is neither ready nor next.
        let in_flight = state.ready.is_empty() && position.checked_add(1) == Some(state.next);
        if coming != position && !in_flight {
            state.ready.clear();
            state.next = position;
            state.seeks += 1;
        }
        self.shared.changed.notify_all();
        loop {
            match state.ready.pop_front() {
                Some((p, sample)) if p == position => {
                    self.shared.changed.notify_all();
                    return sample;
                }
                Some(_) => {}
                None if state.dead => {
                    let reason = "the thread that reads ahead has ended; open the set again".to_string();
                    return Err(Error::NoSet { path: "read-ahead".into(), reason });
                }
                None if state.next > position.saturating_add(1) => {
                    // It was taken before: read it again.
                    state.next = position;
                    state.seeks += 1;
                    self.shared.changed.notify_all();
                }
                None => state = self.shared.wait(state),
            }
        }
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

fn read_ahead(shared: &Shared, reader: &ShardReader, depth: usize) {
    loop {
        let mut state = shared.lock();
        while state.ready.len() >= depth && !state.closed {
            state = shared.wait(state);
        }
        if state.closed {
            return;
        }
        let (position, seeks) = (state.next, state.seeks);
        state.next = position.saturating_add(1);
        drop(state);
        let sample = reader.sample(position);
        let mut state = shared.lock();
        if state.seeks == seeks {
            state.ready.push_back((position, sample));
            shared.changed.notify_all();
        }
    }
}
