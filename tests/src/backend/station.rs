//! A node with a running agent, the files that the agent reads, and sessions through the node: what real packets and
//! sockets of control groups have in common as back ends.

use super::objects::{Change, Id, Objects};
use crate::{
    agent::Agent,
    net::{Node, Topology},
    probe::{Link, Responder},
    scenario::{AgentAction, Place, SessionState, State, Where},
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// Bytes of payload unless a scenario asks for more.
pub(super) const SIZE: usize = 8;
/// How long a connection that should be broken gets to prove the contrary.
const BROKEN: Duration = Duration::from_millis(400);
/// How long a connection that should be alive gets: TCP may be in the middle of a back-off.
pub(super) const ALIVE: Duration = Duration::from_secs(60);

/// The node, and who works on it.
#[derive(Debug)]
pub(super) struct Station {
    // The agent goes first on drop: it must not see its node fall apart.
    pub(super) agent: Agent,
    pub(super) sessions: BTreeMap<String, Link>,
    pub(super) responder: Responder,
    pub(super) node: Node,
    objects: Objects,
    files: BTreeMap<Id, String>,
    next_file: u32,
    running: bool,
}

impl Station {
    /// A node with a running agent and nothing else.
    pub(super) fn start(topology: Topology) -> Result<Self> {
        let node = Node::new(topology)?;
        let mut agent = Agent::new(&node)?;
        agent.start()?;
        Ok(Self {
            agent,
            sessions: BTreeMap::new(),
            responder: Responder::start(),
            node,
            objects: Objects::default(),
            files: BTreeMap::new(),
            next_file: 0,
            running: true,
        })
    }

    /// Starts the agent anew, with these arguments.
    pub(super) fn restart_with(&mut self, arguments: &[&str]) -> Result<()> {
        self.agent.kill()?;
        self.agent.set_arguments(arguments);
        self.agent.start()?;
        self.running = true;
        Ok(())
    }

    /// What the files must be changed by to hold the state's objects.
    pub(super) fn changes(&mut self, state: &State) -> Vec<Change> {
        self.objects.update(state)
    }

    /// Writes an object into its file.
    pub(super) fn put(&mut self, id: Id, object: &Value) -> Result<()> {
        let next = &mut self.next_file;
        let file = self.files.entry(id).or_insert_with(|| {
            *next += 1;
            format!("{next:06}.json")
        });
        self.agent.write_manifest(file, &object.to_string())
    }

    /// Removes an object's file.
    pub(super) fn remove(&mut self, id: &Id) -> Result<()> {
        let file = self.files.remove(id).context("a manifest that was never written is gone")?;
        self.agent.remove_manifest(&file)
    }

    /// Returns once the kernel enforces what the files hold, if an agent runs.
    pub(super) fn wait(&mut self) -> Result<()> {
        if self.running { self.agent.wait() } else { Ok(()) }
    }

    /// Does to the agent what a scenario says.
    pub(super) fn act(&mut self, action: AgentAction) -> Result<()> {
        match action {
            AgentAction::Stop => self.agent.kill()?,
            AgentAction::Start => self.agent.start()?,
            AgentAction::Restart => {
                self.agent.kill()?;
                self.agent.start()?;
            }
        }
        self.running = action != AgentAction::Stop;
        Ok(())
    }

    /// Keeps a session under a name; whether there is one.
    pub(super) fn keep(&mut self, id: &str, link: Option<Link>) -> bool {
        let opened = link.is_some();
        if let Some(link) = link {
            self.sessions.insert(id.to_owned(), link);
        }
        opened
    }

    /// Whether a session is alive, after as long as it takes to tell.
    pub(super) fn is_alive(&mut self, id: &str, expected: SessionState) -> Result<bool> {
        let link = self.sessions.get_mut(id).with_context(|| format!("no session {id}"))?;
        link.is_alive(match expected {
            SessionState::Alive => ALIVE,
            SessionState::Broken | SessionState::Either => BROKEN,
        })
    }
}

/// Name of a place's host. Hosts outside share one namespace, and several names may stand for one of them.
pub(super) fn host_name(place: &Place) -> String {
    match (place.at, place.ips.first()) {
        (Where::Outside, Some(ip)) => format!("outside {ip}"),
        (_, _) => place.name.clone(),
    }
}
