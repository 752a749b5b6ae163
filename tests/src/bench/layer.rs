//! What lies between two hosts: nothing, programs that do nothing, ours, or nftables.

use super::stage::{ALLOWED_PORT, Stage};
use crate::{
    group::ControlGroup,
    net::{Netns, Node},
};
use anyhow::{Context, Result, bail};
use aya_obj::generated::bpf_attach_type::{
    BPF_CGROUP_INET_EGRESS, BPF_CGROUP_INET_INGRESS, BPF_TCX_EGRESS, BPF_TCX_INGRESS,
};
use policy_agent::datapath::bpf;
use std::{
    fmt::Write,
    fs::File,
    io::Write as _,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
};

const TABLE: &str = "policy_bench";

/// One of the layers; the first four are always measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layer {
    /// No filter.
    None,
    /// Empty programs at the four hooks.
    Empty,
    /// The same once more: what two equal things differ by.
    EmptyAgain,
    /// Ours with few peers.
    OursFew,
    /// Ours with as many peers as the maps hold.
    OursMany,
    /// Empty programs at the control group of both ends.
    EmptyGroup,
    /// The same once more.
    EmptyGroupAgain,
    /// Ours there, with as many peers as the maps hold.
    OursGroup,
    /// nftables: one set of addresses and ports, without connection tracking.
    NftSet,
    /// nftables: connections that are known pass, others are looked up in the set.
    NftTracked,
}

impl Layer {
    pub(super) const ALL: [Self; 10] = [
        Self::None,
        Self::Empty,
        Self::EmptyAgain,
        Self::OursFew,
        Self::OursMany,
        Self::EmptyGroup,
        Self::EmptyGroupAgain,
        Self::OursGroup,
        Self::NftSet,
        Self::NftTracked,
    ];

    /// The same hooks with programs that do nothing.
    pub(super) fn empty(self) -> Self {
        match self {
            Self::EmptyGroup | Self::EmptyGroupAgain | Self::OursGroup => Self::EmptyGroup,
            Self::None
            | Self::Empty
            | Self::EmptyAgain
            | Self::OursFew
            | Self::OursMany
            | Self::NftSet
            | Self::NftTracked => Self::Empty,
        }
    }

    /// Whether it lets only the allowed port through.
    pub(super) fn filters(self) -> bool {
        match self {
            Self::None | Self::Empty | Self::EmptyAgain | Self::EmptyGroup | Self::EmptyGroupAgain => false,
            Self::OursFew | Self::OursMany | Self::OursGroup | Self::NftSet | Self::NftTracked => true,
        }
    }
}

/// Everything that layers are made of.
pub(super) struct Layers<'a> {
    pub(super) node: &'a Node,
    /// The hosts' interfaces on the node.
    pub(super) interfaces: [u32; 2],
    /// The hosts' addresses.
    pub(super) addresses: [IpAddr; 2],
    /// Peers in the set of nftables.
    pub(super) peers: &'a [IpAddr],
    pub(super) few: Stage,
    pub(super) many: Stage,
    /// The control group of both ends.
    pub(super) group: &'a ControlGroup,
}

impl Layers<'_> {
    /// Runs `work` with the layer in place. Call it in the node's namespace.
    pub(super) fn with<T>(&mut self, layer: Layer, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match layer {
            Layer::None => work(),
            Layer::Empty | Layer::EmptyAgain => {
                let links = Links(self.attach_empty()?);
                let result = work();
                drop(links);
                result
            }
            Layer::OursFew => ours(&self.few, self.interfaces, work),
            Layer::OursMany => ours(&self.many, self.interfaces, work),
            Layer::EmptyGroup | Layer::EmptyGroupAgain => {
                let links = Links(self.attach_empty_group()?);
                let result = work();
                drop(links);
                result
            }
            Layer::OursGroup => {
                let (groups, id) = (&self.many.datapath.groups, self.group.id()?);
                groups.attach(id, self.group.directory())?;
                let result = work();
                groups.detach(id)?;
                result
            }
            Layer::NftSet => nft_layer(self.node.ns(), &self.rules(false), work),
            Layer::NftTracked => nft_layer(self.node.ns(), &self.rules(true), work),
        }
    }

    fn attach_empty(&mut self) -> Result<Vec<OwnedFd>> {
        let program = self.few.programs.get("empty")?.try_clone_to_owned()?;
        let mut links = Vec::new();
        for ifindex in self.interfaces {
            for hook in [BPF_TCX_INGRESS, BPF_TCX_EGRESS] {
                let link = bpf::attach_tcx(program.as_fd(), ifindex, hook);
                links.push(link.context("attach an empty program by TCX (Linux 6.6)")?);
            }
        }
        Ok(links)
    }

    fn attach_empty_group(&self) -> Result<Vec<OwnedFd>> {
        let program = self.many.programs.get("empty_group")?;
        let directory = File::open(self.group.directory()).context("open the control group")?;
        let link = |kind| bpf::attach_group(program, directory.as_fd(), kind);
        [BPF_CGROUP_INET_INGRESS, BPF_CGROUP_INET_EGRESS]
            .into_iter()
            .map(|kind| link(kind).context("attach an empty program to the control group"))
            .collect()
    }

    /// What the same policy is in nftables, for many peers.
    fn rules(&self, tracked: bool) -> String {
        let (family, kind) =
            if self.addresses[0].is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
        let [from, to] = self.addresses;
        let mut elements = String::new();
        for source in self.peers.iter().chain([&from]) {
            for protocol in ["tcp", "udp"] {
                let _ = write!(elements, "{source} . {to} . {protocol} . {ALLOWED_PORT},");
            }
        }
        let replies = if tracked {
            "ct state established,related accept".to_owned()
        } else {
            format!("{family} daddr . {family} saddr . meta l4proto . th sport @allowed accept")
        };
        format!(
            "table inet {TABLE} {{
                set allowed {{
                    type {kind} . {kind} . inet_proto . inet_service
                    elements = {{ {elements} }}
                }}
                chain forward {{
                    type filter hook forward priority 0; policy drop;
                    {replies}
                    {family} saddr . {family} daddr . meta l4proto . th dport @allowed accept
                }}
            }}"
        )
    }
}

/// TCX links that go at once, not when their descriptors' last user is done.
struct Links(Vec<OwnedFd>);

impl Drop for Links {
    fn drop(&mut self) {
        for link in &self.0 {
            if let Err(error) = bpf::detach_link(link.as_fd()) {
                eprintln!("bench: cannot detach an empty program: {error}");
            }
        }
    }
}

fn ours<T>(stage: &Stage, interfaces: [u32; 2], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let hooks = &stage.datapath.hooks;
    for ifindex in interfaces {
        hooks.attach(ifindex)?;
    }
    let result = work();
    for ifindex in interfaces {
        hooks.detach(ifindex)?;
    }
    result
}

fn nft_layer<T>(ns: &Netns, rules: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    nft(ns, rules)?;
    let result = work();
    nft(ns, &format!("delete table inet {TABLE}"))?;
    result
}

fn nft(ns: &Netns, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    ns.enter_command(&mut command)?;
    let mut child = command.spawn().context("run nft (package nftables)")?;
    child.stdin.take().context("nft has no stdin")?.write_all(rules.as_bytes()).context("write to nft")?;
    let output = child.wait_with_output().context("wait for nft")?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
