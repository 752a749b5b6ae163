//! Atoms: the whole peer list of one rule, shared by all rules with an equal list.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{NamespaceScope, Peer, Peers, Selector};

/// Number of an atom in [`Atoms`]. Never reused before [`Atoms::default`] starts over.
pub(crate) type AtomId = u32;

/// Whom a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Every address.
    All,
    /// Addresses of an atom.
    Atom(AtomId),
    /// No address.
    Nothing,
}

/// Namespaces of a peer, resolved against the policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    /// This namespace.
    Namespace(Arc<str>),
    /// Namespaces whose labels match.
    Selector(Selector),
}

/// Pods named by an atom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AtomPods {
    /// Namespaces.
    pub(crate) scope: Scope,
    /// Pods in them.
    pub(crate) pods: Selector,
}

/// Content of an atom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Atom {
    /// Pods, sorted.
    pub(crate) pods: Vec<AtomPods>,
    /// Blocks with their excepts, sorted.
    pub(crate) blocks: Vec<(IpNet, Vec<IpNet>)>,
    /// Nodes, sorted.
    pub(crate) nodes: Vec<Selector>,
}

/// All atoms seen. It only grows: what is evaluated once against an atom stays true.
#[derive(Clone, Debug, Default)]
pub(crate) struct Atoms {
    ids: HashMap<Arc<Atom>, AtomId>,
    list: Vec<Arc<Atom>>,
}

impl Atoms {
    /// Whom a peer list in a policy of `namespace` matches.
    pub(crate) fn target(&mut self, namespace: &Arc<str>, peers: &Peers) -> Target {
        let peers = match peers {
            Peers::All => return Target::All,
            Peers::Any(peers) => peers,
        };
        let mut atom = Atom::default();
        for peer in peers {
            match peer {
                Peer::Pods { namespaces, pods } => {
                    let scope = match namespaces {
                        NamespaceScope::Own => Scope::Namespace(namespace.clone()),
                        NamespaceScope::Selector(selector) => Scope::Selector(selector.clone()),
                    };
                    atom.pods.push(AtomPods { scope, pods: pods.clone() });
                }
                Peer::Block { cidr, except } => {
                    let mut except: Vec<IpNet> = except.iter().map(IpNet::trunc).collect();
                    except.sort_unstable();
                    except.dedup();
                    atom.blocks.push((cidr.trunc(), except));
                }
                Peer::Nodes(selector) => atom.nodes.push(selector.clone()),
                Peer::Nothing => {}
            }
        }
        if atom == Atom::default() {
            return Target::Nothing;
        }
        atom.pods.sort_unstable();
        atom.pods.dedup();
        atom.blocks.sort_unstable();
        atom.blocks.dedup();
        atom.nodes.sort_unstable();
        atom.nodes.dedup();
        Target::Atom(self.intern(atom))
    }

    /// Content by number.
    pub(crate) fn get(&self, id: AtomId) -> &Arc<Atom> {
        &self.list[id as usize]
    }

    /// Atoms with number `from` and above.
    pub(crate) fn since(&self, from: usize) -> impl Iterator<Item = (AtomId, &Arc<Atom>)> {
        (0..).zip(&self.list).skip(from)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    fn intern(&mut self, atom: Atom) -> AtomId {
        if let Some(id) = self.ids.get(&atom) {
            return *id;
        }
        let id = AtomId::try_from(self.list.len()).unwrap_or(AtomId::MAX);
        let atom = Arc::new(atom);
        self.list.push(atom.clone());
        self.ids.insert(atom, id);
        id
    }
}
