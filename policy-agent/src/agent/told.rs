//! What the self-check found, in the words of the local API.

use std::time::Duration;

use super::check::{Checked, Drift, Report};
use crate::proto::agent as proto;

/// The answer to somebody who asked for a check.
pub(super) fn report(report: &Report) -> proto::VerifyResponse {
    proto::VerifyResponse {
        clean: report.found == 0 && report.failures.is_empty(),
        drifts: report.drifts.iter().map(drift).collect(),
        failures: report.failures.clone(),
        entries: report.entries,
        hooks: report.hooks,
        trials: report.trials,
        took_us: micros(report.took),
        enforcement: report.plan,
        found: report.found,
    }
}

/// The part of the status.
pub(super) fn self_check(checked: &Checked) -> proto::SelfCheck {
    let interval = checked.interval.unwrap_or_default().as_millis();
    proto::SelfCheck {
        interval_ms: u64::try_from(interval).unwrap_or(u64::MAX),
        rounds: checked.rounds,
        last: checked.last.map(Into::into),
        took_us: micros(checked.took),
        trials: checked.trials,
        drifts: checked.drifts(),
        recent: checked.recent.iter().map(drift).collect(),
        unrepaired: checked.unrepaired.values().cloned().collect(),
        unchecked: checked.unchecked.values().cloned().collect(),
    }
}

fn drift(drift: &Drift) -> proto::Drift {
    let Drift { place, what, repaired, at } = drift;
    let entry = if *place == what.map { what.key.clone() } else { format!("{}: {}", what.map, what.key) };
    proto::Drift {
        place: (*place).to_owned(),
        entry,
        found: what.found.clone(),
        wanted: what.wanted.clone(),
        repaired: *repaired,
        time: Some((*at).into()),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
