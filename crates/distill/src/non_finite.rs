//! Non-finite values: counted, attributed and bounded, never laundered to zero.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Occurrences kept in full; the totals go on counting beyond them.
const KEPT_OCCURRENCES: usize = 64;

/// One place and time at which values were not finite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occurrence {
    /// The training iteration.
    pub iteration: u64,
    /// The loss term, network or gradient, such as `consistency` or `gradient of blocks.3.ffn.0.weight`.
    pub term: String,
    /// The global index of the sample (which also tells the rank); none if the whole batch is concerned.
    pub sample: Option<u64>,
    /// How many elements were NaN or infinite.
    pub count: u64,
}

/// What a [`NonFiniteLedger`] has recorded: the part that a checkpoint keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NonFiniteHistory {
    /// Occurrences so far.
    pub total: u64,
    /// Occurrences of each term.
    pub by_term: BTreeMap<String, u64>,
    /// The latest occurrences, oldest first; at most 64.
    pub latest: Vec<Occurrence>,
}

/// Counts occurrences of non-finite values against a budget.
///
/// The unit of the budget is an occurrence (one term of one sample left out, or one update skipped), not an element:
/// one broken sample would otherwise spend any budget at once.
#[derive(Clone, Debug)]
pub struct NonFiniteLedger {
    budget: u64,
    history: NonFiniteHistory,
}

impl NonFiniteLedger {
    /// An empty ledger that lets `budget` occurrences pass.
    pub fn new(budget: u64) -> Self {
        Self::resume(budget, NonFiniteHistory::default())
    }

    /// A ledger that goes on from a checkpoint's history.
    pub fn resume(budget: u64, history: NonFiniteHistory) -> Self {
        NonFiniteLedger { budget, history }
    }

    /// Everything recorded so far.
    pub fn history(&self) -> &NonFiniteHistory {
        &self.history
    }

    /// Records `count` non-finite elements in one term; a count of 0 records nothing.
    ///
    /// # Errors
    /// If this occurrence is beyond the budget; the message says where and when, and what else there was.
    pub fn record(&mut self, iteration: u64, term: &str, sample: Option<u64>, count: u64) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let h = &mut self.history;
        h.total += 1;
        *h.by_term.entry(term.to_string()).or_default() += 1;
        if h.latest.len() == KEPT_OCCURRENCES {
            h.latest.remove(0);
        }
        h.latest.push(Occurrence { iteration, term: term.to_string(), sample, count });
        if h.total <= self.budget {
            return Ok(());
        }
        let by_term = h.by_term.iter().map(|(term, n)| format!("{term}: {n}")).collect::<Vec<_>>().join(", ");
        let (total, budget, term) = (h.total, self.budget, term.to_string());
        Err(Error::NonFiniteBudget { iteration, term, sample, count, total, budget, by_term })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_occurrence_beyond_the_budget_is_an_error_that_attributes_it() {
        let mut ledger = NonFiniteLedger::new(2);
        ledger.record(3, "scm", Some(17), 1000).unwrap();
        ledger.record(4, "gradient of head.weight", None, 2).unwrap();
        let e = ledger.record(9, "scm", Some(40), 6).unwrap_err().to_string();
        for part in ["iteration 9", "scm, sample 40", "6 of them", "budget is 2", "scm: 2", "head.weight: 1"] {
            assert!(e.contains(part), "'{part}' is not in: {e}");
        }
        assert_eq!(ledger.history().latest[1].sample, None);
    }

    #[test]
    fn finite_values_cost_nothing_and_a_budget_of_zero_stops_at_the_first() {
        let mut ledger = NonFiniteLedger::new(0);
        ledger.record(1, "dmd", Some(0), 0).unwrap();
        assert_eq!(ledger.history(), &NonFiniteHistory::default());
        assert!(ledger.record(1, "dmd", Some(0), 1).is_err());
    }

    #[test]
    fn a_resumed_ledger_goes_on_counting() {
        let mut ledger = NonFiniteLedger::new(100);
        (0..99).for_each(|i| ledger.record(i, "critic", Some(i), 1).unwrap());
        let saved = serde_json::to_value(ledger.history()).unwrap();
        let mut resumed = NonFiniteLedger::resume(100, serde_json::from_value(saved).unwrap());
        assert_eq!(resumed.history(), ledger.history());
        assert_eq!(resumed.history().latest.len(), KEPT_OCCURRENCES);
        assert_eq!(resumed.history().latest[0].iteration, 99 - KEPT_OCCURRENCES as u64);
        resumed.record(99, "critic", None, 1).unwrap();
        assert!(resumed.record(100, "critic", None, 1).is_err());
    }
}
