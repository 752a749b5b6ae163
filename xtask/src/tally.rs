//! Counting tests from what the test harness prints, line by line.

/// What a stream of test output said so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: usize,
    /// Tests that failed, and suites that ended without a result.
    pub(crate) failed: usize,
    /// Tests that were skipped by an `ignore` mark.
    pub(crate) ignored: usize,
    /// The tests and suites behind `failed`.
    pub(crate) failures: Vec<String>,
    suite: Option<String>,
}

impl Tally {
    /// Takes one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.ignored += count(counts, "ignored");
            self.suite = None;
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(name.to_owned());
        } else if let Some(suite) = suite(line) {
            self.end_of_suite();
            self.suite = Some(suite);
        }
    }

    /// The stream ended; `success` is what the command's exit status said.
    pub(crate) fn end(&mut self, success: bool) {
        if success {
            // A suite with a harness of its own may print no result: it passed, but is not counted.
            self.suite = None;
        }
        self.end_of_suite();
        if !success && self.failed == 0 {
            self.failed = 1;
            self.failures.push("the test command itself".to_owned());
        }
    }

    /// Adds another stream's numbers.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.failures.extend(other.failures.iter().cloned());
    }

    /// A suite that was begun and printed no result died.
    fn end_of_suite(&mut self) {
        if let Some(suite) = self.suite.take() {
            self.failed += 1;
            self.failures.push(format!("{suite} (ended without a result)"));
        }
    }
}

/// The number before a word in "ok. 3 passed; 0 failed; 1 ignored; ...".
fn count(counts: &str, word: &str) -> usize {
    let words: Vec<&str> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or_default()
}

/// The suite that cargo announces: "Running tests/x.rs (target/...)" or "Doc-tests x".
fn suite(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(crate_name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("documentation of {crate_name}"));
    }
    let (source, binary) = line.strip_prefix("Running ")?.rsplit_once(" (")?;
    let binary = binary.strip_suffix(')')?.rsplit('/').next()?;
    Some(format!("{source} of {}", binary.rsplit_once('-').map_or(binary, |(name, _)| name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str], success: bool) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.line(line);
        }
        tally.end(success);
        tally
    }

    const A: &str = "     Running unittests src/lib.rs (target/debug/deps/policy_engine-0123)";
    const B: &str = "     Running tests/progrun.rs (target/debug/deps/progrun-4567)";

    #[test]
    fn sums_over_suites() {
        let said = tally(
            &[
                A,
                "test a ... ok",
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
                B,
                "test b ... FAILED",
                "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 4 filtered out; finished in 0.10s",
                "   Doc-tests policy_engine",
                "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            ],
            false,
        );
        assert_eq!((said.passed, said.failed, said.ignored), (9, 1, 1));
        assert_eq!(said.failures, ["b"]);
    }

    #[test]
    fn a_suite_that_died_is_a_failure() {
        let said = tally(&[A, "test a ... ok", B, "test result: ok. 1 passed; 0 failed; 0 ignored"], false);
        assert_eq!((said.passed, said.failed), (1, 1));
        assert_eq!(said.failures, ["unittests src/lib.rs of policy_engine (ended without a result)"]);
        assert_eq!(tally(&[B], false).failed, 1);
    }

    #[test]
    fn a_command_that_failed_before_any_test_is_a_failure() {
        assert_eq!(tally(&["error: could not compile"], false).failed, 1);
        assert_eq!(tally(&[], true), Tally::default());
    }

    #[test]
    fn numbers_are_added() {
        let mut sum = tally(&[B], false);
        sum.add(&tally(&["test result: ok. 2 passed; 0 failed; 3 ignored"], true));
        assert_eq!((sum.passed, sum.failed, sum.ignored), (2, 1, 3));
    }
}
