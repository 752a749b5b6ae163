//! Real packets as a back end: a node of namespaces, the real agent on it, sockets in its pods.

use super::{
    objects::Change,
    run::{Backend, Places, Seen, in_order},
    station::{ALIVE, SIZE, Station, host_name},
};
use crate::{
    agent::Agent,
    nat::translate,
    net::{Attach, Host, Node, Topology},
    probe::{Link, Outcome, Probe, Responder, Want, verdicts},
    scenario::{
        AgentAction, Case, Expected, Pair, Place, Port, SessionState, State, Translation, Translations,
        Transport, Where,
    },
};
use anyhow::{Context, Result, ensure};
use policy_engine::model::ServiceMode;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
};

/// A node, its agent, and what a scenario has put on it.
#[derive(Debug)]
pub struct Wire {
    station: Station,
    placed: BTreeMap<String, Placed>,
    mode: ServiceMode,
    translations: Translations,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Placed {
    place: Place,
    host: String,
}

impl Wire {
    /// A node with a running agent and nothing else.
    pub fn start(topology: Topology) -> Result<Self> {
        Ok(Self {
            station: Station::start(topology)?,
            placed: BTreeMap::new(),
            mode: ServiceMode::Tag,
            translations: Translations::default(),
        })
    }

    /// The agent, for suites that do more to it than scenarios can.
    pub fn agent_process(&mut self) -> &mut Agent {
        &mut self.station.agent
    }

    /// The agent's pin directory.
    pub fn agent_pins(&self) -> std::path::PathBuf {
        self.station.agent.bpffs().to_owned()
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.station.node
    }

    /// Who answers for the hosts.
    pub fn responder(&self) -> &Responder {
        &self.station.responder
    }

    /// Makes hosts and manifests equal to `state`, without waiting for the agent.
    pub fn put(&mut self, state: &State) -> Result<()> {
        self.place(state)?;
        let translations = state.translations();
        // Rules that translate nothing track connections all the same, and put fragments together before the hooks.
        if translations.forwards != self.translations.forwards {
            translate(self.station.node.ns(), &translations.forwards)?;
        }
        self.translations = translations;
        if !self.translations.forwards.is_empty() {
            self.let_turn_back()?;
        }
        self.write(state)
    }

    /// A frame that the translation sends back to where it came from leaves a bridge only by a port in this mode, which
    /// CNI plugins set.
    fn let_turn_back(&self) -> Result<()> {
        if self.station.node.topology() != Topology::Bridge {
            return Ok(());
        }
        let mut commands = String::new();
        for host in self.station.node.hosts().filter(|host| host.attach == Attach::Pod) {
            commands.push_str(&format!("link set dev {} hairpin on\n", host.host_link));
        }
        let mut command = Command::new("bridge");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        self.station.node.ns().enter_command(&mut command)?;
        let mut child = command.spawn().context("start bridge")?;
        child.stdin.take().context("bridge has no input")?.write_all(commands.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "bridge: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn translation(&self, places: &Places, pair: &Pair) -> Option<Translation> {
        let to = places.get(&pair.to)?.ip(pair.family)?;
        self.translations.of(to, pair.port)
    }

    /// The host that a place is on.
    pub fn host_of(&self, place: &Place) -> Result<Arc<Host>> {
        if place.at == Where::Node {
            return Ok(Arc::new(self.station.node.as_host()));
        }
        let name = host_name(place);
        self.station.node.host(&name).cloned().with_context(|| format!("{} is not on the node", place.name))
    }

    /// Hosts of the node become those of the state: what changed its sandbox or address is made anew.
    fn place(&mut self, state: &State) -> Result<()> {
        let wanted: BTreeMap<String, Placed> = state
            .places()
            .into_iter()
            .filter(|place| place.at != Where::Node && !place.is_service())
            .map(|place| (place.name.clone(), Placed { host: host_name(&place), place }))
            .collect();
        let keep: BTreeSet<&String> = wanted.values().map(|placed| &placed.host).collect();
        let stale = |placed: &&Placed| match placed.place.at {
            Where::Pod => wanted.get(&placed.place.name) != Some(*placed),
            Where::Node | Where::Outside => !keep.contains(&placed.host),
        };
        let gone: BTreeSet<String> =
            self.placed.values().filter(stale).map(|placed| placed.host.clone()).collect();
        for host in gone {
            self.station.responder.forget(&host);
            self.station.node.remove(&host)?;
        }
        for placed in wanted.values() {
            if self.station.node.host(&placed.host).is_none() {
                let attach = if placed.place.at == Where::Pod { Attach::Pod } else { Attach::Outside };
                self.station.node.add(&placed.host, attach, &placed.place.ips)?;
            }
        }
        self.placed = wanted;
        Ok(())
    }

    fn write(&mut self, state: &State) -> Result<()> {
        for change in self.station.changes(state) {
            match change {
                Change::Put(id, object) => self.station.put(id, &object)?,
                Change::Gone(id, _) => self.station.remove(&id)?,
            }
        }
        Ok(())
    }

    fn question(&self, places: &Places, pair: &Pair, size: usize) -> Result<Probe> {
        let place = |name: &str| places.get(name).with_context(|| format!("no place {name}"));
        let (from, to) = (place(&pair.from)?, place(&pair.to)?);
        let address = |place: &Place| place.ip(pair.family).with_context(|| format!("{pair}: no address"));
        let ns = self.host_of(from)?.ns.clone();
        Ok(Probe { ns, from: address(from)?, to: address(to)?, port: pair.port, size, unconnected: false })
    }

    /// Asks the pairs of these numbers and writes down what became of them.
    fn probe_group(
        &self,
        places: &Places,
        pairs: &[Expected],
        group: &[usize],
        size: Option<usize>,
        seen: &mut [Seen],
    ) -> Result<()> {
        let (mut asked, mut probes, mut wants) = (Vec::new(), Vec::new(), Vec::new());
        let mut refusable = Vec::new();
        for n in group.iter().copied() {
            let expected = &pairs[n];
            let place = |name: &str| places.get(name).with_context(|| format!("no place {name}"));
            let translation = self.translation(places, &expected.pair);
            let backend = translation.as_ref().map(|t| t.backends.first());
            let behind =
                |backend: &SocketAddr| places.values().find(|place| place.ips.contains(&backend.ip()));
            let (from, to) = (place(&expected.pair.from)?, place(&expected.pair.to)?);
            let passes = match backend {
                // Refused by the node if nobody else stops it.
                Some(None) => Some(false),
                Some(Some(backend)) => expected.on_the_wire(from, behind(backend).unwrap_or(to)),
                None => expected.on_the_wire(from, to),
            };
            let Some(passes) = passes else { continue };
            refusable.push(backend == Some(None));
            probes.push(self.question(places, &expected.pair, size.unwrap_or(SIZE))?);
            wants.push(if passes { Want::Answer } else { Want::Silence });
            asked.push(n);
        }
        let asked = asked.into_iter().zip(refusable);
        for (((n, refusable), want), outcome) in asked.zip(&wants).zip(verdicts(&probes, &wants)?) {
            let agrees = match &outcome {
                Outcome::Refused(_) if refusable => true,
                Outcome::Answered(_) => *want == Want::Answer,
                Outcome::Silent => *want == Want::Silence,
                // A drop is silent; whoever says no has seen the packet.
                Outcome::Refused(why) => {
                    seen[n].note = format!("refused: {why}");
                    false
                }
            };
            seen[n].allow = Some(pairs[n].allow == agrees);
        }
        Ok(())
    }

    fn listen(&self, places: &Places, pairs: impl IntoIterator<Item = Pair>) -> Result<()> {
        let mut ports: BTreeMap<String, BTreeSet<Port>> = BTreeMap::new();
        for pair in pairs {
            let Some(translation) = self.translation(places, &pair) else {
                ports.entry(pair.to).or_default().insert(pair.port);
                continue;
            };
            for backend in translation.backends {
                let Some(to) = places.values().find(|place| place.ips.contains(&backend.ip())) else {
                    continue;
                };
                let port = Port { number: backend.port(), ..pair.port };
                ports.entry(to.name.clone()).or_default().insert(port);
            }
        }
        for (name, ports) in ports {
            let place = places.get(&name).with_context(|| format!("no place {name}"))?;
            let ports: Vec<Port> = ports.into_iter().collect();
            self.station.responder.listen(&*self.host_of(place)?, &ports)?;
        }
        Ok(())
    }
}

impl Backend for Wire {
    /// Pods of the last scenario stay, as on a node that lives long, unless this one asks about protocols without
    /// ports: there an old flow cannot be told from a new one.
    fn begin(&mut self, case: &Case) -> Result<()> {
        self.station.sessions.clear();
        let mut ports =
            case.steps.iter().filter_map(|step| step.expect.as_ref()).flat_map(|expect| &expect.ports);
        if !ports.any(|port| matches!(port.transport, Transport::Other(_))) {
            return Ok(());
        }
        let hosts: BTreeSet<String> =
            std::mem::take(&mut self.placed).into_values().map(|placed| placed.host).collect();
        for host in hosts {
            self.station.responder.forget(&host);
            self.station.node.remove(&host)?;
        }
        Ok(())
    }

    fn log(&self) -> Option<String> {
        Some(self.station.agent.log())
    }

    fn judge_services(&mut self, mode: ServiceMode) -> Result<bool> {
        if self.mode != mode {
            self.mode = mode;
            self.station.restart_with(&["--services", mode.name()])?;
        }
        Ok(true)
    }

    fn needs_open_baseline(&self) -> bool {
        true
    }

    fn sync(&mut self, state: &State) -> Result<()> {
        self.put(state)?;
        self.station.wait()
    }

    fn agent(&mut self, action: AgentAction) -> Result<()> {
        self.station.act(action)
    }

    fn probe(&mut self, places: &Places, pairs: &[Expected], size: Option<usize>) -> Result<Vec<Seen>> {
        self.listen(places, pairs.iter().map(|expected| expected.pair.clone()))?;
        let mut seen = vec![Seen::default(); pairs.len()];
        for group in in_order(pairs) {
            self.probe_group(places, pairs, &group, size, &mut seen)?;
        }
        Ok(seen)
    }

    fn open(&mut self, places: &Places, id: &str, pair: &Pair) -> Result<bool> {
        self.listen(places, [pair.clone()])?;
        let link = Link::open(&self.question(places, pair, SIZE)?, ALIVE)?;
        Ok(self.station.keep(id, link))
    }

    fn is_alive(&mut self, _places: &Places, id: &str, expected: SessionState) -> Result<bool> {
        self.station.is_alive(id, expected)
    }
}
