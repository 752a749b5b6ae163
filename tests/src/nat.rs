//! What kube-proxy does to packets, by nftables in the node's own namespace: Services, node ports, host ports,
//! masquerade, and the refusal of a Service without backends.

use crate::net::Netns;
use anyhow::{Context, Result, ensure};
use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

/// What connections are addressed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// An address of a Service: cluster, external or load balancer.
    Address(SocketAddr),
    /// A port of every address of the node: masqueraded, as with `externalTrafficPolicy: Cluster`.
    NodePort(u16),
    /// The same without masquerade: a host port, or `externalTrafficPolicy: Local`.
    HostPort(u16),
}

/// A port of a Service and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// What connections are addressed to.
    pub front: Front,
    /// `tcp`, `udp`.
    pub protocols: Vec<&'static str>,
    /// Backends, taken in turns; none: refused.
    pub backends: Vec<SocketAddr>,
}

/// Replaces the node's translation by these.
pub fn translate(ns: &Netns, forwards: &[Forward]) -> Result<()> {
    let mut text = String::new();
    for family in ["ip", "ip6"] {
        rules(&mut text, family, forwards).context("write rules")?;
    }
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    ns.enter_command(&mut command)?;
    let mut child = command.spawn().context("start nft")?;
    child.stdin.take().context("nft has no input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}\n{text}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn rules(text: &mut String, family: &str, forwards: &[Forward]) -> std::fmt::Result {
    let v4 = family == "ip";
    // Created and deleted first, so that the new table replaces an old one in one step.
    write!(
        text,
        "table {family} services {{}}\ndelete table {family} services\ntable {family} services {{\n\
         chain before_route {{ type nat hook prerouting priority dstnat; jump fronts; }}\n\
         chain own_output {{ type nat hook output priority -100; jump fronts; }}\n\
         chain after_route {{ type nat hook postrouting priority srcnat;\n\
         meta mark & 0x4000 != 0 meta mark set meta mark & 0xffffbfff masquerade fully-random; }}\n\
         chain passed_on {{ type filter hook forward priority filter; jump refusals; }}\n\
         chain made_here {{ type filter hook output priority filter; jump refusals; }}\n"
    )?;
    let (mut all, mut refused) = (String::new(), String::new());
    for forward in forwards {
        let backends: Vec<SocketAddr> =
            forward.backends.iter().copied().filter(|b| b.is_ipv4() == v4).collect();
        if backends.is_empty() && !forward.backends.is_empty() {
            continue;
        }
        for protocol in &forward.protocols {
            let (matches, masquerade) = match forward.front {
                Front::Address(front) if front.is_ipv4() != v4 => continue,
                Front::Address(front) => {
                    (format!("{family} daddr {} {protocol} dport {}", front.ip(), front.port()), false)
                }
                Front::NodePort(port) => (format!("fib daddr type local {protocol} dport {port}"), true),
                Front::HostPort(port) => (format!("fib daddr type local {protocol} dport {port}"), false),
            };
            if backends.is_empty() {
                writeln!(refused, "{matches} reject")?;
                continue;
            }
            for (n, backend) in backends.iter().enumerate() {
                let turn = backends.len() - n;
                let turn = if turn > 1 { format!("numgen inc mod {turn} 0 ") } else { String::new() };
                // Back to the sender itself: without another source address it would answer around the node.
                let hairpin = format!("{matches} {family} saddr {} meta mark set 0x4000\n", backend.ip());
                if !masquerade {
                    all.push_str(&hairpin);
                }
                let mark = if masquerade { "meta mark set 0x4000 " } else { "" };
                writeln!(all, "{matches} {turn}{mark}dnat to {}", endpoint(*backend))?;
            }
        }
    }
    writeln!(text, "chain fronts {{\n{all}}}\nchain refusals {{\n{refused}}}\n}}")
}

fn endpoint(backend: SocketAddr) -> String {
    match backend.ip() {
        IpAddr::V4(ip) => format!("{ip}:{}", backend.port()),
        IpAddr::V6(ip) => format!("[{ip}]:{}", backend.port()),
    }
}
