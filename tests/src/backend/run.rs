//! Runs the steps of a scenario on a back end and collects what differs from its truth.

use crate::{
    net::Family,
    scenario::{
        AgentAction, Case, Expected, Pair, Place, Port, Regroup, Session, SessionExpect, SessionOpen,
        SessionSend, SessionState, State, Translations, Transport,
    },
};
use anyhow::{Context, Result, bail, ensure};
use policy_engine::model::ServiceMode;
use std::collections::BTreeMap;

/// What a back end found out about a pair; `None`: it cannot tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether it passes.
    pub allow: Option<bool>,
    /// Whether the destination's ingress lets it pass.
    pub ingress: Option<bool>,
    /// Whether the source's egress lets it pass.
    pub egress: Option<bool>,
    /// Whether the sender was told that it may not.
    pub told: Option<bool>,
    /// What else there is to say.
    pub note: String,
}

/// Something that holds a cluster and answers whether packets pass in it.
pub trait Backend {
    /// Another scenario begins: what the last one opened is forgotten.
    fn begin(&mut self, _case: &Case) -> Result<()> {
        Ok(())
    }

    /// The end of its log, where it has one, for messages.
    fn log(&self) -> Option<String> {
        None
    }

    /// How the node judges what pods send to Services from now on; false: this back end knows nothing of Services, and is
    /// not asked about them.
    fn judge_services(&mut self, _mode: ServiceMode) -> Result<bool> {
        Ok(false)
    }

    /// Whether it must be shown first that without any policy every pair passes, so that a denial means something.
    fn needs_open_baseline(&self) -> bool {
        false
    }

    /// Makes the back end's cluster equal to `state`, and returns once it is in force.
    fn sync(&mut self, state: &State) -> Result<()>;

    /// Does something to the agent; back ends without a process have nothing to do.
    fn agent(&mut self, _action: AgentAction) -> Result<()> {
        Ok(())
    }

    /// Moves the processes of a workload; only back ends whose pods are control groups have such.
    fn regroup(&mut self, _move: &Regroup) -> Result<()> {
        bail!("pods of this back end are no control groups")
    }

    /// What becomes of new connections; one answer per pair. `size`: bytes of payload.
    fn probe(&mut self, places: &Places, pairs: &[Expected], size: Option<usize>) -> Result<Vec<Seen>>;

    /// Opens a connection; whether that worked.
    fn open(&mut self, places: &Places, id: &str, pair: &Pair) -> Result<bool>;

    /// Sends through a connection, without asking for the outcome.
    fn send(&mut self, _places: &Places, _send: &SessionSend) -> Result<()> {
        Ok(())
    }

    /// Whether data passes through the connection, both ways. `expected` helps to wait no longer than needed.
    fn is_alive(&mut self, places: &Places, id: &str, expected: SessionState) -> Result<bool>;
}

/// Places by name.
pub type Places = BTreeMap<String, Place>;

/// In which order pairs are asked, in two groups. A protocol without ports has one flow for both ends: whoever opens it
/// first lets the other answer. So what must stay silent is asked before anybody else may speak.
pub(super) fn in_order(pairs: &[Expected]) -> [Vec<usize>; 2] {
    let portless = |e: &Expected| matches!(e.pair.port.transport, Transport::Other(_));
    let (first, rest) = (0..pairs.len()).partition(|n| portless(&pairs[*n]) && !pairs[*n].allow);
    [first, rest]
}

/// Runs all steps, for each way to judge Services that the scenario is about; the result lists every difference, one a
/// line. An error is a scenario that cannot run.
pub fn run(case: &Case, backend: &mut dyn Backend) -> Result<Vec<String>> {
    let mut differences = Vec::new();
    for mode in case.services.modes() {
        let found = run_as(case, *mode, backend)?;
        let label =
            if case.services.modes().len() > 1 { format!("by {}: ", mode.name()) } else { String::new() };
        differences.extend(found.into_iter().map(|text| label.clone() + &text));
    }
    Ok(differences)
}

fn run_as(case: &Case, mode: ServiceMode, backend: &mut dyn Backend) -> Result<Vec<String>> {
    let mut state = State::new(case)?;
    let knows_services = backend.judge_services(mode)?;
    backend.begin(case)?;
    backend.sync(&state).context("sync before the first step")?;
    let mut differences = Vec::new();
    if backend.needs_open_baseline() {
        let table = Expected::all_open(&some_ports(case), &state);
        let seen = backend.probe(&places_of(&state), &table, None).context("before the first step")?;
        let pairs = table.iter().zip(&seen);
        differences.extend(
            pairs.filter_map(|(e, s)| compare(e, s)).map(|text| format!("before the first step: {text}")),
        );
    }
    for (n, step) in case.steps.iter().enumerate() {
        let label =
            if step.name.is_empty() { format!("step {n}") } else { format!("step {n} ({})", step.name) };
        for action in &step.actions {
            state.act(action).with_context(|| label.clone())?;
        }
        let to_agent: Vec<AgentAction> = step.actions.iter().filter_map(|action| action.agent).collect();
        for action in &to_agent {
            backend.agent(*action).with_context(|| format!("{label}: agent {action:?}"))?;
        }
        backend.sync(&state).with_context(|| format!("{label}: sync"))?;
        for one in step.actions.iter().filter_map(|action| action.regroup.as_ref()) {
            backend.regroup(one).with_context(|| format!("{label}: regroup {}", one.pod))?;
        }
        let places = places_of(&state);
        for session in &step.sessions {
            let found = use_session(session, backend, &places, &state).with_context(|| label.clone())?;
            differences.extend(found.map(|text| format!("{label}: {text}")));
        }
        if let Some(expect) = &step.expect {
            let mut table = Expected::table(case, expect, &state).with_context(|| label.clone())?;
            if !knows_services {
                let translations = state.translations();
                table.retain(|expected| !is_translated(&translations, &places, &expected.pair));
            }
            let seen = backend.probe(&places, &table, expect.size).with_context(|| label.clone())?;
            ensure!(seen.len() == table.len(), "{label}: {} answers to {} pairs", seen.len(), table.len());
            let pairs = table.iter().zip(&seen);
            differences
                .extend(pairs.filter_map(|(e, s)| compare(e, s)).map(|text| format!("{label}: {text}")));
        }
    }
    Ok(differences)
}

/// Whether the node turns the destination into another one, or leaves a Service's address as it is.
fn is_translated(translations: &Translations, places: &Places, pair: &Pair) -> bool {
    let place = places.get(&pair.to);
    let to = place.and_then(|place| place.ip(pair.family));
    place.is_some_and(Place::is_service) || to.is_some_and(|to| translations.of(to, pair.port).is_some())
}

fn places_of(state: &State) -> Places {
    state.places().into_iter().map(|place| (place.name.clone(), place)).collect()
}

/// One port of every protocol that the scenario is about: enough to show that the way is open. Not of protocols
/// without ports: the flow that shows it would be one with those of the first step.
fn some_ports(case: &Case) -> Vec<Port> {
    let ports = case
        .steps
        .iter()
        .filter_map(|step| step.expect.as_ref())
        .flat_map(|expect| expect.ports.iter().copied());
    let ports = ports.filter(|port| !matches!(port.transport, Transport::Other(_)));
    let first: BTreeMap<Transport, Port> = ports.map(|port| (port.transport, port)).collect();
    first.into_values().collect()
}

fn compare(expected: &Expected, seen: &Seen) -> Option<String> {
    let word = |allow: bool| if allow { "allow" } else { "deny" };
    let differs = |want: Option<bool>, got: Option<bool>| match (want, got) {
        (Some(want), Some(got)) if want != got => Some((want, got)),
        (_, _) => None,
    };
    let checks = [
        ("", differs(Some(expected.allow), seen.allow)),
        (" ingress", differs(expected.ingress, seen.ingress)),
        (" egress", differs(expected.egress, seen.egress)),
    ];
    let told = differs(expected.told, seen.told).map(|(want, _)| {
        format!("{}: the sender is {}told that it may not", expected.pair, if want { "not " } else { "" })
    });
    let text = |(side, (want, got)): (&str, (bool, bool))| {
        format!("{}{side}: expected {}, seen {}", expected.pair, word(want), word(got))
    };
    let found: Vec<String> =
        checks.into_iter().filter_map(|(side, check)| Some(text((side, check?)))).chain(told).collect();
    let note = if seen.note.is_empty() { String::new() } else { format!(" ({})", seen.note) };
    (!found.is_empty()).then(|| found.join("; ") + &note)
}

fn use_session(
    session: &Session,
    backend: &mut dyn Backend,
    places: &Places,
    state: &State,
) -> Result<Option<String>> {
    if let Some(SessionOpen { id, from, to, port, family }) = &session.open {
        let family = family.unwrap_or_else(|| state.families.first().copied().unwrap_or(Family::V4));
        let pair = Pair { from: from.clone(), to: to.clone(), port: *port, family };
        let opened = backend.open(places, id, &pair).with_context(|| format!("open {id}"))?;
        return Ok((!opened).then(|| format!("session {id}: {pair} does not open")));
    }
    if let Some(send) = &session.send {
        backend.send(places, send).with_context(|| format!("send {}", send.id))?;
    }
    if let Some(SessionExpect { id, state: want }) = &session.expect {
        let alive = backend.is_alive(places, id, *want).with_context(|| format!("expect {id}"))?;
        let differs = match want {
            SessionState::Alive => !alive,
            SessionState::Broken => alive,
            SessionState::Either => false,
        };
        return Ok(differs.then(|| format!("session {id}: expected {want:?}, seen alive={alive}")));
    }
    Ok(None)
}
