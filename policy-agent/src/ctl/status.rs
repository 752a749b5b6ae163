//! `policyctl status`: how the agent is doing, worst things in colour.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use crate::api::json;
use crate::ctl::args::{AgentOutput, TableForm};
use crate::ctl::client;
use crate::ctl::failure::Failure;
use crate::ctl::screen::{Colour, Screen, joined, plain, time};
use crate::proto::agent::{
    Drift, EndpointSummary, ExitDevice, Problem, Services, Source, StatusRequest, StatusResponse, TableUsage,
};

/// Runs the command.
///
/// # Errors
/// When the agent cannot be reached or the output cannot be written.
pub async fn run(socket: &Path, args: &AgentOutput, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let status = client::agent(socket).await?.status(StatusRequest {}).await?.into_inner();
    match args.output {
        TableForm::Json => writeln!(screen.out, "{}", json::full("policyagent.v1.StatusResponse", &status)?)?,
        TableForm::Table => text(&status, screen)?,
    }
    Ok(())
}

fn text(status: &StatusResponse, screen: &mut Screen<'_>) -> io::Result<()> {
    let state = if status.ready {
        screen.paint(Colour::Green, "ready")
    } else {
        screen.paint(Colour::Red, "not ready")
    };
    let started = time(&screen.zone, status.started.as_ref(), "%Y-%m-%d %H:%M:%S %Z");
    writeln!(screen.out, "policy-agent {} on {}: {state}", status.version, status.node_name)?;
    writeln!(screen.out, "  started      {started}")?;
    writeln!(screen.out, "  kernel       {}", status.kernel)?;
    writeln!(screen.out, "  enforcement  plan {}", status.enforcement)?;
    if let Some(endpoints) = &status.endpoints {
        writeln!(screen.out, "  endpoints    {}", endpoint_words(endpoints, screen))?;
    }
    if !status.exits.is_empty() {
        writeln!(screen.out, "  exits        {}", exit_words(&status.exits, screen))?;
    }
    if let Some(services) = &status.services {
        writeln!(screen.out, "  services     {}", service_words(services, screen))?;
    }
    if !status.objects.is_empty() {
        let counts: Vec<_> =
            status.objects.iter().map(|object| format!("{} {}", object.count, object.name)).collect();
        writeln!(screen.out, "  objects      {}", counts.join(", "))?;
    }
    sources(&status.sources, screen)?;
    problems(&status.problems, screen)?;
    tables(&status.tables, screen)?;
    self_check(status, screen)?;
    losses(status, screen)?;
    features(status, screen)
}

fn endpoint_words(summary: &EndpointSummary, screen: &Screen<'_>) -> String {
    let EndpointSummary { total, enforced, pending, unenforced } = *summary;
    let mut words = format!("{total}: {enforced} enforced");
    if pending > 0 {
        words.push_str(&screen.paint(Colour::Yellow, &format!(", {pending} pending")));
    }
    if unenforced > 0 {
        words.push_str(&screen.paint(Colour::Red, &format!(", {unenforced} NOT ENFORCED")));
    }
    words
}

/// Devices by which packets leave the node: those that are hooked by name, the others by what is wrong.
fn exit_words(exits: &[ExitDevice], screen: &Screen<'_>) -> String {
    let words = exits.iter().map(|exit| {
        let ExitDevice { name, hooked, detail, .. } = exit;
        match (hooked, detail.as_str()) {
            (true, "") => plain(name),
            (true, detail) => screen.paint(Colour::Yellow, &plain(&format!("{name} ({detail})"))),
            (false, detail) => screen.paint(Colour::Red, &plain(&format!("{name} NOT HOOKED ({detail})"))),
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

/// How traffic to Services is judged, and where that cannot be.
fn service_words(services: &Services, screen: &Screen<'_>) -> String {
    let Services { setting, judged_by, tags_kept, tags_lost, tags_unknown } = services;
    let fallback = setting != judged_by && judged_by == "backends";
    let mut words = format!("judged by {judged_by}");
    if fallback {
        words = screen.paint(Colour::Yellow, &format!("{words} (FALLBACK)"));
    }
    words.push_str(&format!("; tags survive at {tags_kept} interfaces"));
    if !tags_unknown.is_empty() {
        words.push_str(&format!(", unknown at {}", tags_unknown.len()));
    }
    if !tags_lost.is_empty() {
        words.push_str(&screen.paint(Colour::Red, &plain(&format!(", LOST at {}", tags_lost.join(", ")))));
    }
    words
}

fn sources(sources: &[Source], screen: &mut Screen<'_>) -> io::Result<()> {
    if sources.is_empty() {
        return Ok(());
    }
    writeln!(screen.out, "\nsources")?;
    for source in sources {
        // What is missing says why.
        let state = if !source.missing.is_empty() && source.synced {
            screen.paint(Colour::Red, "synced, but")
        } else if !source.missing.is_empty() {
            screen.paint(Colour::Yellow, "not all read yet")
        } else if !source.error.is_empty() {
            screen.paint(Colour::Red, &plain(&source.error))
        } else if source.synced {
            "synced".to_owned()
        } else {
            screen.paint(Colour::Yellow, "not yet read")
        };
        let changed = time(&screen.zone, source.last_change.as_ref(), "%Y-%m-%d %H:%M:%S %Z");
        writeln!(screen.out, "  {} {}: {state}, last change {changed}", source.kind, source.location)?;
        for missing in &source.missing {
            writeln!(screen.out, "    {}", screen.paint(Colour::Yellow, &plain(missing)))?;
        }
    }
    Ok(())
}

fn problems(problems: &[Problem], screen: &mut Screen<'_>) -> io::Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let heading = screen.paint(Colour::Red, &format!("problems ({})", problems.len()));
    writeln!(screen.out, "\n{heading}")?;
    for problem in problems {
        let Problem { location, object, field, message } = problem;
        writeln!(screen.out, "  {}", joined(&[location, object, field, message]))?;
    }
    Ok(())
}

fn tables(tables: &[TableUsage], screen: &mut Screen<'_>) -> io::Result<()> {
    if tables.is_empty() {
        return Ok(());
    }
    writeln!(screen.out)?;
    let row = |table: &TableUsage| {
        let share = table.used as f64 * 100.0 / table.limit.max(1) as f64;
        let used = table.used.to_string();
        vec![table.name.clone(), used, table.limit.to_string(), format!("{share:.1} %")]
    };
    screen.table(&["TABLE", "USED", "LIMIT", "SHARE"], &tables.iter().map(row).collect::<Vec<_>>())
}

fn self_check(status: &StatusResponse, screen: &mut Screen<'_>) -> io::Result<()> {
    let Some(check) = &status.self_check else { return Ok(()) };
    let every = match check.interval_ms {
        0 => "only when asked".to_owned(),
        interval => format!("every {:?}", Duration::from_millis(interval)),
    };
    let last = time(&screen.zone, check.last.as_ref(), "%Y-%m-%d %H:%M:%S %Z");
    let drifts = match check.drifts {
        0 => "nothing had been changed".to_owned(),
        count => screen.paint(Colour::Red, &format!("{count} CHANGED BY SOMEBODY ELSE")),
    };
    writeln!(screen.out, "\nself-check {every}: {} rounds, last {last}: {drifts}", check.rounds)?;
    for drift in &check.recent {
        let Drift { place, entry, found, wanted, repaired, time: at } = drift;
        let at = time(&screen.zone, at.as_ref(), "%H:%M:%S");
        let end = if *repaired { "put right" } else { "NOT PUT RIGHT" };
        let told = plain(&format!("{place}, {entry}: {found}, should be {wanted}; {end}"));
        writeln!(screen.out, "  {at} {told}")?;
    }
    Ok(())
}

fn losses(status: &StatusResponse, screen: &mut Screen<'_>) -> io::Result<()> {
    if status.losses.is_empty() {
        return Ok(());
    }
    writeln!(screen.out, "\nlosses")?;
    for loss in &status.losses {
        let count = if loss.count == 0 {
            "0".to_owned()
        } else {
            screen.paint(Colour::Yellow, &loss.count.to_string())
        };
        let help = if loss.help.is_empty() { String::new() } else { format!(" ({})", loss.help) };
        writeln!(screen.out, "  {}: {count}{help}", loss.name)?;
    }
    Ok(())
}

fn features(status: &StatusResponse, screen: &mut Screen<'_>) -> io::Result<()> {
    if status.features.is_empty() {
        return Ok(());
    }
    writeln!(screen.out, "\nkernel features")?;
    for feature in &status.features {
        let has = if feature.available { "yes" } else { "no" };
        let detail = if feature.detail.is_empty() { String::new() } else { format!(" ({})", feature.detail) };
        writeln!(screen.out, "  {}: {has}{detail}", feature.name)?;
    }
    Ok(())
}
