//! Which atoms contain the addresses of a prefix: one walk over all prefixes that policies name.
//!
//! Every block and every `except` is a key of the kernel's trie, so all addresses whose longest key is the same prefix
//! are inside the same blocks and excepts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;

use super::atoms::{AtomId, Atoms};
use crate::address::IDENTITIES;
use crate::model::Node;

/// Prefixes and the atoms of the addresses for which they are the longest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    /// Prefix and index into `signatures`, sorted.
    pub(crate) prefixes: Vec<(IpNet, u32)>,
    /// Distinct sets of atoms, sorted each; 0 is the empty one.
    pub(crate) signatures: Vec<Vec<AtomId>>,
    /// First address of each stretch with one signature, by family.
    stretches: [Vec<(u128, u32)>; 2],
}

impl Blocks {
    /// Walks the blocks of these atoms, among them the addresses of the nodes that they name.
    pub(crate) fn new(atoms: &Atoms, live: &[AtomId], nodes: &OrdMap<Arc<str>, Arc<Node>>) -> Self {
        let mut walk = Walk::default();
        for id in live {
            let atom = atoms.get(*id);
            for (cidr, except) in &atom.blocks {
                walk.add(*id, *cidr, except);
            }
            let named = nodes.values().filter(|n| atom.nodes.iter().any(|s| s.matches(&n.labels)));
            for address in named.flat_map(|node| &node.addresses) {
                walk.add(*id, IpNet::from(*address), &[]);
            }
        }
        walk.run()
    }

    /// Index of the signature of an address.
    pub(crate) fn at(&self, address: IpAddr) -> u32 {
        let stretches = &self.stretches[usize::from(address.is_ipv6())];
        let number = number(address);
        match stretches.partition_point(|s| s.0 <= number) {
            0 => 0,
            i => stretches[i - 1].1,
        }
    }
}

/// Address as a number, in its family.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// A prefix that the walk is inside of: its edges and its signature.
type Open<'a> = (IpNet, &'a [(usize, Edge)], u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    Block,
    Except,
}

#[derive(Clone, Debug)]
struct Block {
    atom: AtomId,
    inside: bool,
    excepts: u32,
}

impl Block {
    const fn matches(&self) -> bool {
        self.inside && self.excepts == 0
    }
}

#[derive(Debug, Default)]
struct Walk {
    events: BTreeMap<IpNet, Vec<(usize, Edge)>>,
    blocks: Vec<Block>,
    /// Atoms with at least one matching block.
    active: BTreeMap<AtomId, u32>,
    interned: BTreeMap<Vec<AtomId>, u32>,
    result: Blocks,
}

impl Walk {
    fn add(&mut self, atom: AtomId, cidr: IpNet, except: &[IpNet]) {
        // No block is about what stands for a workload and is on no wire.
        let identities = IpNet::V6(IDENTITIES);
        if identities.contains(&cidr) {
            return;
        }
        let block = self.blocks.len();
        self.blocks.push(Block { atom, inside: false, excepts: 0 });
        self.events.entry(cidr).or_default().push((block, Edge::Block));
        if cidr.contains(&identities) {
            self.events.entry(identities).or_default().push((block, Edge::Except));
        }
        for prefix in except {
            self.events.entry(*prefix).or_default().push((block, Edge::Except));
        }
    }

    fn run(mut self) -> Blocks {
        self.intern();
        let events = std::mem::take(&mut self.events);
        let mut open: Vec<Open> = Vec::new();
        for (prefix, edges) in &events {
            while let Some((last, ..)) = open.last() {
                if last.contains(prefix) {
                    break;
                }
                self.close(&mut open);
            }
            self.cross(edges, true);
            let signature = self.intern();
            self.result.prefixes.push((*prefix, signature));
            self.stretch(prefix.network(), signature);
            open.push((*prefix, edges, signature));
        }
        while !open.is_empty() {
            self.close(&mut open);
        }
        self.result
    }

    /// Leaves the innermost prefix: behind it its parent goes on.
    fn close(&mut self, open: &mut Vec<Open>) {
        let Some((prefix, edges, _)) = open.pop() else { return };
        self.cross(edges, false);
        let outside = open.last().map_or(0, |o| o.2);
        let next = match prefix.broadcast() {
            IpAddr::V4(a) => a.to_bits().checked_add(1).map(|n| IpAddr::V4(n.into())),
            IpAddr::V6(a) => a.to_bits().checked_add(1).map(|n| IpAddr::V6(n.into())),
        };
        if let Some(next) = next {
            self.stretch(next, outside);
        }
    }

    fn stretch(&mut self, from: IpAddr, signature: u32) {
        let stretches = &mut self.result.stretches[usize::from(from.is_ipv6())];
        let from = number(from);
        match stretches.last_mut() {
            Some(last) if last.0 == from => last.1 = signature,
            _ => stretches.push((from, signature)),
        }
    }

    fn cross(&mut self, edges: &[(usize, Edge)], enter: bool) {
        for (block, edge) in edges {
            let block = &mut self.blocks[*block];
            let before = block.matches();
            match edge {
                Edge::Block => block.inside = enter,
                Edge::Except if enter => block.excepts += 1,
                Edge::Except => block.excepts -= 1,
            }
            let after = block.matches();
            if after && !before {
                *self.active.entry(block.atom).or_default() += 1;
            } else if before && !after {
                let count = self.active.entry(block.atom).or_default();
                *count -= 1;
                if *count == 0 {
                    self.active.remove(&block.atom);
                }
            }
        }
    }

    fn intern(&mut self) -> u32 {
        let atoms: Vec<AtomId> = self.active.keys().copied().collect();
        if let Some(id) = self.interned.get(&atoms) {
            return *id;
        }
        let id = u32::try_from(self.interned.len()).unwrap_or(u32::MAX);
        self.result.signatures.push(atoms.clone());
        self.interned.insert(atoms, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::atoms::Target;
    use crate::model::{Peer, Peers};

    fn block(cidr: &str, except: &[&str]) -> Peer {
        Peer::Block {
            cidr: cidr.parse().unwrap(),
            except: except.iter().map(|e| e.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn nested_blocks_and_excepts() {
        let mut atoms = Atoms::default();
        let lists = [
            vec![block("10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"])],
            vec![block("10.1.2.0/24", &[]), block("0.0.0.0/0", &["10.0.0.0/8"])],
            vec![block("255.255.255.0/24", &[]), block("2001:db8::/32", &["2001:db8:1::/48"])],
        ];
        let namespace: Arc<str> = "x".into();
        let live: Vec<AtomId> = lists
            .into_iter()
            .map(|peers| match atoms.target(&namespace, &Peers::Any(peers)) {
                Target::Atom(id) => id,
                other => panic!("{other:?}"),
            })
            .collect();
        let blocks = Blocks::new(&atoms, &live, &OrdMap::new());
        let at = |a: &str| blocks.signatures[blocks.at(a.parse().unwrap()) as usize].clone();
        assert_eq!(at("10.0.0.1"), [0]);
        assert_eq!(at("10.1.0.1"), Vec::<AtomId>::new());
        assert_eq!(at("10.1.2.3"), [1]);
        assert_eq!(at("10.1.3.0"), Vec::<AtomId>::new());
        assert_eq!(at("10.2.0.0"), [0]);
        assert_eq!(at("11.0.0.0"), [1]);
        assert_eq!(at("255.255.255.255"), [1, 2]);
        assert_eq!(at("2001:db7::1"), Vec::<AtomId>::new());
        assert_eq!(at("2001:db8::1"), [2]);
        assert_eq!(at("2001:db8:1::1"), Vec::<AtomId>::new());
        assert_eq!(at("2001:db8:2::"), [2]);
        assert_eq!(at("2001:db9::"), Vec::<AtomId>::new());
    }

    #[test]
    fn no_block_is_about_what_stands_for_a_workload() {
        let mut atoms = Atoms::default();
        let namespace: Arc<str> = "x".into();
        let peers = ["::/0", "100::/8", "100::/64", "100::7/128"].map(|cidr| block(cidr, &[])).to_vec();
        let Target::Atom(id) = atoms.target(&namespace, &Peers::Any(peers)) else { panic!() };
        let blocks = Blocks::new(&atoms, &[id], &OrdMap::new());
        let at = |a: &str| blocks.signatures[blocks.at(a.parse().unwrap()) as usize].clone();
        for (address, inside) in [("100::", false), ("100::7", false), ("100:0:0:1::", true), ("ff::", true)]
        {
            assert_eq!(!at(address).is_empty(), inside, "{address}");
        }
        let prefix = blocks.prefixes.iter().find(|(prefix, _)| *prefix == IpNet::V6(IDENTITIES));
        assert_eq!(prefix.map(|(_, signature)| *signature), Some(0), "the kernel's table says so too");
    }
}
