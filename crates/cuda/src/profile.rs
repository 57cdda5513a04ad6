//! Where a device's time goes, by op.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::{Gpu, Result};

struct Span {
    op: &'static str,
    marks: [u64; 2],
}

thread_local! {
    static SPANS: RefCell<Option<(Gpu, Vec<Span>)>> = const { RefCell::new(None) };
}

/// What one op took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// Seconds of the device.
    pub seconds: f64,
    /// How often it ran.
    pub calls: usize,
}

/// Runs `f` and tells what each op took that this thread attributed to it meanwhile.
///
/// # Errors
/// If the device fails.
pub fn profiled<R>(gpu: &Gpu, f: impl FnOnce() -> R) -> Result<(R, BTreeMap<&'static str, Share>)> {
    SPANS.set(Some((gpu.clone(), Vec::new())));
    let r = f();
    let (_, spans) = SPANS.take().unwrap_or((gpu.clone(), Vec::new()));
    let mut shares: BTreeMap<&'static str, Share> = BTreeMap::new();
    for span in spans {
        let share = shares.entry(span.op).or_default();
        share.seconds += gpu.driver().between(span.marks)? / 1000.0;
        share.calls += 1;
    }
    Ok((r, shares))
}

/// Runs `f` between two marks, if a profile is taken.
pub(crate) fn span<R>(op: &'static str, f: impl FnOnce() -> R) -> R {
    let mark = || SPANS.with_borrow(|s| s.as_ref().and_then(|(gpu, _)| gpu.driver().mark().ok()));
    let Some(before) = mark() else { return f() };
    let r = f();
    // A device that fails here fails at the next call, too, which tells.
    if let Some(after) = mark() {
        SPANS.with_borrow_mut(|s| s.as_mut().map(|(_, spans)| spans.push(Span { op, marks: [before, after] })));
    }
    r
}
