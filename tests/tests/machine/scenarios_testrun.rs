//! Every scenario on the kernel's own maps and programs, without interfaces: packets by `BPF_PROG_TEST_RUN`.

use policy_tests::{
    backend::{Kind, run_all},
    scenario::{self, Case},
};

#[test]
fn the_kernel_programs_agree_with_every_truth_table() {
    let cases = scenario::all().expect("scenario files read").into_iter().map(|(_, case)| case);
    let cases: Vec<Case> = cases.filter(|case| Kind::TestRun.runs(case)).collect();
    assert!(cases.len() >= 150, "only {} scenarios were found", cases.len());
    // Each waits for grace periods most of the time; on a single processor they end at once, but loading is slow.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if processors == 1 { 1 } else { 4 * processors };
    let found = run_all(Kind::TestRun, &cases, jobs, &|_, _| {});
    let failed = cases.iter().zip(&found).filter(|(_, found)| !found.is_empty());
    let failures: Vec<String> =
        failed.map(|(case, found)| format!("{}\n  {}", case.id, found.join("\n  "))).collect();
    assert!(failures.is_empty(), "{} of {} fail:\n{}", failures.len(), cases.len(), failures.join("\n\n"));
}
