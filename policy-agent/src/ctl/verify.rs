//! `policyctl verify`: whether the kernel holds what the agent wrote, and judges packets as the evaluator does.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::api::json;
use crate::ctl::args::{AgentOutput, TableForm};
use crate::ctl::client;
use crate::ctl::failure::{DRIFTED, FAILED, Failure};
use crate::ctl::screen::{Screen, plain};
use crate::proto::agent::{Drift, VerifyRequest, VerifyResponse};

/// Runs the command.
///
/// # Errors
/// With [`DRIFTED`] as exit code if something had been changed; otherwise when something could not be checked or put
/// right, the agent cannot be reached, or the output cannot be written.
pub async fn run(socket: &Path, args: &AgentOutput, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let answer = client::agent(socket).await?.verify(VerifyRequest {}).await?.into_inner();
    match args.output {
        TableForm::Json => writeln!(screen.out, "{}", json::full("policyagent.v1.VerifyResponse", &answer)?)?,
        TableForm::Table => table(&answer, screen)?,
    }
    if answer.clean {
        return Ok(());
    }
    let mut lines: Vec<String> = Vec::new();
    if answer.found > 0 {
        lines.push(format!("{} entries had been changed by somebody else", answer.found));
    }
    lines.extend(answer.failures.iter().map(|failure| plain(failure)));
    let is_repaired = answer.failures.is_empty() && answer.drifts.iter().all(|drift| drift.repaired);
    let (exit, hint) = if is_repaired {
        (DRIFTED, "what was found is put right; who else writes to these maps? bpftool map, bpftool link")
    } else {
        (FAILED, "policyctl status and the agent's log tell more")
    };
    Err(Failure { exit, ..Failure::new(lines.join("\n  ")).hint(hint) })
}

fn table(answer: &VerifyResponse, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let VerifyResponse { entries, hooks, trials, took_us, enforcement, .. } = answer;
    let took = Duration::from_micros(*took_us);
    let state = if answer.clean { "as it should be" } else { "NOT as it should be" };
    writeln!(
        screen.out,
        "plan {enforcement}: {state} ({entries} entries and {hooks} hooks compared, {trials} packets tried, {took:?})"
    )?;
    if answer.drifts.is_empty() {
        return Ok(());
    }
    let row = |drift: &Drift| {
        let Drift { place, entry, found, wanted, repaired, time: _ } = drift.clone();
        vec![place, entry, found, wanted, if repaired { "yes" } else { "NO" }.to_owned()]
    };
    screen.table(
        &["PLACE", "ENTRY", "FOUND", "WANTED", "REPAIRED"],
        &answer.drifts.iter().map(row).collect::<Vec<_>>(),
    )?;
    Ok(())
}
