//! What the VM runs gave: a verdict and the tests per kernel, and what the verifier walked per program.

use std::{collections::BTreeMap, time::Duration};

use crate::tally::Tally;

/// How a kernel's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All suites passed.
    Passed,
    /// Why it did not.
    Failed(String),
    /// Why it was not run.
    Skipped(String),
}

/// A kernel's run.
pub(super) struct Outcome {
    /// The kernel's name in the table.
    pub(super) kernel: String,
    package: String,
    verdict: Verdict,
    tally: Tally,
    /// Instructions that the verifier processed, by program.
    verifier: BTreeMap<String, u64>,
    log: String,
    took: Duration,
}

impl Outcome {
    /// Reads the log of a run.
    pub(super) fn new(kernel: &str, package: &str, verdict: Verdict, log: &str, took: Duration) -> Self {
        let (mut tally, mut verifier) = (Tally::default(), BTreeMap::new());
        for line in log.lines() {
            tally.line(line);
            // "VERIFIER <program> <instructions>", printed by a test
            if let Some((program, count)) =
                line.strip_prefix("VERIFIER ").and_then(|rest| rest.split_once(' '))
                && let Ok(count) = count.trim().parse()
            {
                verifier.insert(program.to_owned(), count);
            }
        }
        tally.end(verdict == Verdict::Passed);
        let (kernel, package, log) = (kernel.to_owned(), package.to_owned(), log.to_owned());
        Self { kernel, package, verdict, tally, verifier, log, took }
    }

    /// A kernel that could not be booted.
    pub(super) fn failed_early(kernel: &str, error: &anyhow::Error) -> Self {
        Self::new(kernel, "", Verdict::Failed(format!("{error:#}")), "", Duration::ZERO)
    }

    /// A kernel that is not to be had today.
    pub(super) fn skipped(kernel: &str, error: &anyhow::Error) -> Self {
        Self::new(kernel, "", Verdict::Skipped(format!("{error:#}")), "", Duration::ZERO)
    }

    /// Whether all went well.
    pub(super) fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }

    /// Whether something went wrong.
    pub(super) fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Failed(_))
    }

    /// The tests of this kernel, named with it.
    pub(super) fn tally(&self) -> Tally {
        if matches!(self.verdict, Verdict::Skipped(_)) {
            return Tally::default();
        }
        let mut tally = self.tally.clone();
        for name in &mut tally.failures {
            *name = format!("{name} on kernel {}", self.kernel);
        }
        tally
    }

    /// One line: the kernel and how it went.
    pub(super) fn line(&self) -> String {
        let Self { kernel, package, verdict, tally, took, .. } = self;
        let end = match verdict {
            Verdict::Passed => "passed".to_owned(),
            Verdict::Failed(why) => format!("FAILED: {why}"),
            Verdict::Skipped(why) => return format!("{kernel:5} SKIPPED: {why}"),
        };
        let Tally { passed, failed, .. } = tally;
        format!("{kernel:5} {end}, {passed} tests ok, {failed} not, {:.1} s  {package}", took.as_secs_f32())
    }
}

/// The logs of failures, a table of all kernels, a table of what the verifier walked.
pub(super) fn print(outcomes: &[Outcome]) {
    for outcome in outcomes.iter().filter(|outcome| outcome.failed() && !outcome.log.is_empty()) {
        println!("\n---- console of kernel {} ----\n{}", outcome.kernel, outcome.log.trim_end());
    }
    println!("\nkernels:");
    for outcome in outcomes {
        println!("  {}", outcome.line());
    }
    for line in verifier_table(outcomes) {
        println!("{line}");
    }
}

/// Programs down, kernels across.
fn verifier_table(outcomes: &[Outcome]) -> Vec<String> {
    let ran: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.verifier.is_empty()).collect();
    let mut programs: Vec<&String> = ran.iter().flat_map(|outcome| outcome.verifier.keys()).collect();
    programs.sort();
    programs.dedup();
    if programs.is_empty() {
        return Vec::new();
    }
    let width = programs.iter().map(|program| program.len()).max().unwrap_or_default();
    let mut lines = vec!["instructions that the verifier processed (its limit is 1000000):".to_owned()];
    lines.push(
        ran.iter().fold(format!("  {:width$}", ""), |line, outcome| format!("{line} {:>8}", outcome.kernel)),
    );
    for program in programs {
        lines.push(ran.iter().fold(format!("  {program:width$}"), |line, outcome| {
            let count = outcome.verifier.get(program).map_or_else(|| "-".to_owned(), u64::to_string);
            format!("{line} {count:>8}")
        }));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "     Running tests/progrun.rs (suites/progrun-vm)\ntest a ... ok\nVERIFIER ingress 64871\n\
                       test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n";

    fn outcome(kernel: &str, verdict: Verdict, log: &str) -> Outcome {
        Outcome::new(kernel, "p", verdict, log, Duration::from_secs(5))
    }

    #[test]
    fn a_log_is_read() {
        let good = outcome("6.1", Verdict::Passed, LOG);
        assert_eq!((good.tally().passed, good.tally().failed, good.passed()), (1, 0, true));
        let table = verifier_table(&[good, outcome("6.12", Verdict::Passed, "VERIFIER egress 7\n")]);
        assert_eq!(table[1], "               6.1     6.12");
        assert_eq!(table[3], "  ingress    64871        -");
    }

    #[test]
    fn a_panic_is_a_failed_test() {
        let half =
            outcome("5.10", Verdict::Failed("panic".to_owned()), LOG.split_once("VERIFIER").unwrap().0);
        assert_eq!(half.tally().failed, 1);
        assert!(half.tally().failures[0].ends_with("on kernel 5.10"), "{:?}", half.tally().failures);
        assert_eq!(outcome("5.10", Verdict::Failed("no boot".to_owned()), "").tally().failed, 1);
    }

    #[test]
    fn a_skipped_kernel_is_neither() {
        let skipped = Outcome::skipped("sid", &anyhow::anyhow!("gone"));
        assert_eq!((skipped.tally().passed, skipped.tally().failed), (0, 0));
        assert!(!skipped.passed() && !skipped.failed());
        assert!(skipped.line().contains("SKIPPED"));
    }
}
