//! Who uses how much of a device's memory.

use std::cell::Cell;
use std::fmt;
use std::sync::Mutex;

use crate::profile;

/// What memory is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Weights: masters, copies in the compute type, averages.
    Weights,
    /// The optimiser's moments.
    Optimizer,
    /// Gradients of weights.
    Gradients,
    /// Everything that a pass makes.
    #[default]
    Activations,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::Weights, "weights"),
    (Kind::Optimizer, "optimiser"),
    (Kind::Gradients, "gradients"),
    (Kind::Activations, "activations"),
];

thread_local! {
    static KIND: Cell<Kind> = const { Cell::new(Kind::Activations) };
    static OP: Cell<&'static str> = const { Cell::new("a tensor") };
}

/// Runs `f` with what this thread allocates counted as `kind`.
pub fn counted_as<R>(kind: Kind, f: impl FnOnce() -> R) -> R {
    let before = KIND.replace(kind);
    let r = f();
    KIND.set(before);
    r
}

/// Runs `f` with what this thread allocates attributed to an op, for the message when memory runs out, and what it takes, for a
/// profile.
pub fn attributed_to<R>(op: &'static str, f: impl FnOnce() -> R) -> R {
    let before = OP.replace(op);
    let r = profile::span(op, f);
    OP.set(before);
    r
}

pub(crate) fn current() -> (Kind, &'static str) {
    (KIND.get(), OP.get())
}

/// Bytes in use on a device, and the most since the last [`Gpu::reset_peak`](crate::Gpu::reset_peak) with what they were used for then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in use.
    pub live: usize,
    /// The most bytes in use.
    pub peak: usize,
    /// Bytes by kind at the peak, in the order of [`Kind`].
    pub at_peak: [usize; 4],
    /// The device's memory.
    pub total: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: usize| bytes / 1_000_000;
        write!(f, "{} of {} MB in use; peak {} MB: ", mb(self.live), mb(self.total), mb(self.peak))?;
        for (i, (kind, name)) in KINDS.iter().enumerate() {
            write!(f, "{}{name} {}", if i > 0 { ", " } else { "" }, mb(self.at_peak[*kind as usize]))?;
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Account(Mutex<(Usage, [usize; 4])>);

impl Account {
    fn update<R>(&self, f: impl FnOnce(&mut Usage, &mut [usize; 4]) -> R) -> R {
        // A panic elsewhere leaves numbers behind that are still numbers.
        let mut both = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let (usage, live) = &mut *both;
        f(usage, live)
    }

    pub(crate) fn add(&self, kind: Kind, bytes: usize) {
        self.update(|usage, live| {
            live[kind as usize] += bytes;
            usage.live += bytes;
            if usage.live > usage.peak {
                (usage.peak, usage.at_peak) = (usage.live, *live);
            }
        });
    }

    pub(crate) fn remove(&self, kind: Kind, bytes: usize) {
        self.update(|usage, live| {
            live[kind as usize] -= bytes;
            usage.live -= bytes;
        });
    }

    pub(crate) fn usage(&self) -> Usage {
        self.update(|usage, _| *usage)
    }

    pub(crate) fn reset_peak(&self) {
        self.update(|usage, live| (usage.peak, usage.at_peak) = (usage.live, *live));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_remembers_what_it_was_made_of() {
        let account = Account::default();
        account.add(Kind::Weights, 10);
        account.add(Kind::Activations, 5);
        account.remove(Kind::Activations, 5);
        account.add(Kind::Optimizer, 2);
        let usage = account.usage();
        assert_eq!((usage.live, usage.peak, usage.at_peak), (12, 15, [10, 0, 0, 5]));
        account.reset_peak();
        assert_eq!((account.usage().peak, account.usage().at_peak), (12, [10, 2, 0, 0]));
    }

    #[test]
    fn scopes_nest_and_end() {
        counted_as(Kind::Weights, || {
            attributed_to("linear", || assert_eq!(current(), (Kind::Weights, "linear")));
            assert_eq!(current(), (Kind::Weights, "a tensor"));
        });
        assert_eq!(current().0, Kind::Activations);
    }
}
