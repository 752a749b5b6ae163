//! The network between the nodes: a namespace each, and one with a switch that is also the world outside the cluster.

use super::PREFIX;
use crate::net::Netns;
use anyhow::{Context, Result, ensure};
use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::Command,
};

/// The namespace with the switch.
pub const LAN: &str = "lan";

/// Path of a namespace, which anything that enters namespaces understands.
pub fn namespace(name: &str) -> PathBuf {
    PathBuf::from(format!("/run/netns/{PREFIX}{name}"))
}

/// Addresses of a node.
pub fn node_ips(number: u8) -> [IpAddr; 2] {
    let sixth = u16::from(number);
    [Ipv4Addr::new(10, 99, 0, number).into(), Ipv6Addr::new(0xfd00, 0x10, 0x99, 0, 0, 0, 0, sixth).into()]
}

/// Addresses of the world outside, which is also the nodes' router.
pub fn outside_ips() -> [IpAddr; 2] {
    node_ips(254)
}

/// The subnets of a node's pods.
pub fn pod_subnets(number: u8) -> [String; 2] {
    [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")]
}

/// Gives the world outside further addresses, and returns its namespace.
pub fn outside(addresses: &[IpAddr]) -> Result<Netns> {
    for address in addresses {
        let length = if address.is_ipv4() { 32 } else { 128 };
        inside(LAN, &["address", "replace", &format!("{address}/{length}"), "dev", "switch"])?;
    }
    let file = File::open(namespace(LAN)).context("open the world outside")?;
    Ok(Netns::from_file(file))
}

/// Makes the switch and a connected namespace for each node.
pub(super) fn up(nodes: u8) -> Result<()> {
    ip(&["netns", "add", &full(LAN)])?;
    quiet(LAN)?;
    inside(LAN, &["link", "set", "lo", "up"])?;
    inside(LAN, &["link", "add", "switch", "type", "bridge"])?;
    inside(LAN, &["link", "set", "switch", "up"])?;
    for address in outside_ips() {
        inside(LAN, &["address", "add", &with_length(address), "dev", "switch"])?;
    }
    for number in 1..=nodes {
        node(number)?;
        for (subnet, via) in pod_subnets(number).iter().zip(node_ips(number)) {
            inside(LAN, &["route", "add", subnet, "via", &via.to_string()])?;
        }
    }
    for number in 1..=nodes {
        for subnet in pod_subnets(number) {
            // A pod that is not there must not be looked for outside, which would send the packet back.
            inside(&super::node_name(number), &["route", "add", "blackhole", &subnet, "metric", "4000"])?;
        }
    }
    for (from, to) in pairs(nodes) {
        for (subnet, via) in pod_subnets(to).iter().zip(node_ips(to)) {
            inside(&super::node_name(from), &["route", "add", subnet, "via", &via.to_string()])?;
        }
    }
    Ok(())
}

/// Removes all of it; what is not there is no error.
pub(super) fn down() -> Result<()> {
    let list = output(Command::new("ip").args(["netns", "list"]))?;
    for name in list.lines().filter_map(|line| line.split(' ').next()).filter(|n| n.starts_with(PREFIX)) {
        ip(&["netns", "delete", name])?;
    }
    Ok(())
}

fn node(number: u8) -> Result<()> {
    let name = super::node_name(number);
    let (port, full_name) = (format!("port{number}"), full(&name));
    ip(&["netns", "add", &full_name])?;
    quiet(&name)?;
    inside(&name, &["link", "set", "lo", "up"])?;
    inside(LAN, &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &full_name])?;
    inside(LAN, &["link", "set", &port, "master", "switch", "up"])?;
    inside(&name, &["link", "set", "eth0", "up"])?;
    for address in node_ips(number) {
        inside(&name, &["address", "add", &with_length(address), "dev", "eth0"])?;
    }
    for via in outside_ips() {
        inside(&name, &["route", "add", "default", "via", &via.to_string()])?;
    }
    Ok(())
}

/// Forwarding, and addresses that are usable at once.
fn quiet(name: &str) -> Result<()> {
    for setting in [
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
        "net.ipv6.conf.all.accept_dad=0",
        "net.ipv6.conf.default.accept_dad=0",
        "net.ipv4.ping_group_range=0 2147483647",
    ] {
        output(Command::new("ip").args(["netns", "exec", &full(name), "sysctl", "-qw", setting]))?;
    }
    Ok(())
}

fn pairs(nodes: u8) -> impl Iterator<Item = (u8, u8)> {
    (1..=nodes).flat_map(move |from| (1..=nodes).map(move |to| (from, to))).filter(|(from, to)| from != to)
}

fn with_length(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}

fn full(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn ip(arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(arguments)).map(drop)
}

fn inside(name: &str, arguments: &[&str]) -> Result<()> {
    output(Command::new("ip").args(["-netns", &full(name)]).args(arguments)).map(drop)
}

/// What a command prints; its errors are told with the command.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(
        done.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&done.stderr),
        String::from_utf8_lossy(&done.stdout)
    );
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
