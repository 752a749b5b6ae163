//! Addresses whose ports lead to Services, judged before the node translates them: what each port leads to, in classes,
//! and the rule set that a row makes of it.

use policy_common::abi::{Outcome, action};

use crate::desired::SetContent;
use crate::model::Protocol;

/// An address that the node translates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Front {
    /// It is the node's own: what leads nowhere else is delivered to the node.
    pub(crate) own: bool,
    /// Ports that lead to Services, each with where it leads, in the order of the backends' addresses.
    pub(crate) ports: Vec<(Protocol, u16, Vec<Backend>)>,
}

/// What a port may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Backend {
    /// The node itself.
    Node,
    /// A port of the addresses of a class.
    Class(u32, u16),
}

impl Front {
    /// The front with each backend once: addresses of a class are judged alike.
    pub(crate) fn new(own: bool, ports: Vec<(Protocol, u16, Vec<Backend>)>) -> Self {
        let once = |backends: Vec<Backend>| {
            let mut seen = Vec::with_capacity(backends.len());
            backends.into_iter().for_each(|b| {
                if !seen.contains(&b) {
                    seen.push(b);
                }
            });
            seen
        };
        Self { own, ports: ports.into_iter().map(|(p, n, backends)| (p, n, once(backends))).collect() }
    }

    /// What the address means to a row: `itself` = the rule set of the address where nothing translates it, `class` =
    /// that of a class.
    pub(crate) fn set<'a>(&self, itself: &SetContent, class: impl Fn(u32) -> &'a SetContent) -> SetContent {
        let mut set = if self.own { SetContent::open() } else { itself.clone() };
        for (protocol, port, backends) in &self.ports {
            let outcomes = backends.iter().map(|backend| match backend {
                Backend::Node => Outcome::new(action::ALLOW, 0),
                Backend::Class(id, port) => class(*id).outcome(*protocol, *port),
            });
            set.put(*protocol, *port, all(outcomes));
        }
        set
    }
}

/// The first backend's rule if every one is allowed, else what drops the first that is not. The node chooses one of
/// them by itself.
fn all(outcomes: impl Iterator<Item = Outcome>) -> Outcome {
    let mut first = None;
    for outcome in outcomes {
        if outcome.action() != action::ALLOW {
            return outcome;
        }
        first.get_or_insert(outcome);
    }
    first.unwrap_or(Outcome::DROP)
}

#[cfg(test)]
mod tests {
    use policy_common::abi::Interval;

    use super::*;

    fn allow(rule: u32) -> Outcome {
        Outcome::new(action::ALLOW, rule)
    }

    #[test]
    fn a_port_passes_if_everything_that_it_may_lead_to_does() {
        let web = SetContent {
            intervals: [vec![Interval { low: 8080, high: 8081, outcome: allow(7) }], Vec::new(), Vec::new()],
            ..SetContent::default()
        };
        let sets = [SetContent::default(), web, SetContent::open()];
        let front = |own, ports: &[(u16, &[Backend])]| {
            let ports = ports.iter().map(|(port, to)| (Protocol::Tcp, *port, to.to_vec())).collect();
            Front::new(own, ports).set(&sets[2], |class| &sets[class as usize])
        };
        let (good, bad) = (Backend::Class(1, 8080), Backend::Class(1, 80));
        let ports: &[(u16, &[Backend])] =
            &[(1, &[good, Backend::Node]), (2, &[good, bad]), (3, &[]), (65_535, &[bad])];
        let seen = |set: &SetContent, port| set.outcome(Protocol::Tcp, port);
        for own in [false, true] {
            let set = front(own, ports);
            let outcomes = [0, 1, 2, 3, 4, 65_535].map(|port| seen(&set, port));
            let (open, shut) = (allow(0), Outcome::DROP);
            assert_eq!(outcomes, [open, allow(7), shut, shut, open, shut]);
            assert_eq!((seen(&set, 65_534), set.outcome(Protocol::Udp, 2), set.other), (open, open, open));
        }
    }

    #[test]
    fn one_port_of_an_interval_changes_alone() {
        let whole = Interval { low: 10, high: 20, outcome: allow(1) };
        for port in [9, 10, 15, 20, 21] {
            let mut set =
                SetContent { intervals: [vec![whole], Vec::new(), Vec::new()], ..SetContent::default() };
            set.put(Protocol::Tcp, port, allow(2));
            let wanted = |n| {
                if n == port {
                    allow(2)
                } else if (10..=20).contains(&n) {
                    allow(1)
                } else {
                    Outcome::DROP
                }
            };
            assert!((0..30).all(|n| set.outcome(Protocol::Tcp, n) == wanted(n)), "{port}: {set:?}");
            assert!(set.intervals[0].windows(2).all(|two| two[0].high < two[1].low), "{set:?}");
        }
    }
}
