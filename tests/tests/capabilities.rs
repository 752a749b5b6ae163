//! The capabilities that `deploy/base` gives to the agent: they suffice, and the kernel refuses something without each.
#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::io;
use std::net::IpAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use aya_obj::generated::bpf_attach_type::{BPF_TCX_EGRESS, BPF_TCX_INGRESS};
use policy_agent::datapath::{Config, OBJECT, bpf, load, tcx_supported};
use policy_agent::netlink::Events;
use policy_tests::agent::{Agent, program_path};
use policy_tests::net::{Attach, Netns, Node, Topology};
use policy_tests::pins::PinDir;
use policy_tests::scenario::root;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\n\
    spec: {nodeName: node-1}\nstatus: {phase: Running, podIP: 10.244.0.10}\n";

/// Capabilities of the DaemonSet, as it writes them.
fn shipped() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("deploy/base/daemonset.yaml")).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("add: [")).unwrap();
    line.trim_end_matches(']').split(", ").map(|name| name.trim_matches('"').to_owned()).collect()
}

/// Number of a capability (`linux/capability.h`).
fn number(name: &str) -> u32 {
    match name {
        "NET_BROADCAST" => 11,
        "NET_ADMIN" => 12,
        "PERFMON" => 38,
        "BPF" => 39,
        other => panic!("the test does not know the capability {other}"),
    }
}

/// Leaves the calling thread these capabilities and no others.
fn keep(names: &[&str]) -> io::Result<()> {
    let set = names.iter().fold(0_u64, |set, name| set | 1 << number(name));
    // Version 3 and the calling thread; effective, permitted and inheritable of the lower 32, then of the upper.
    let header = [0x2008_0522_u32, 0];
    let words = [set as u32, set as u32, 0, (set >> 32) as u32, (set >> 32) as u32, 0];
    // SAFETY: the header and the two records of three words that version 3 reads.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), words.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the agent asks of the kernel at its start, with these capabilities: whether programs are verified and hooked, and
/// whether it hears of other namespaces.
fn start_with(names: &[&str]) -> (Result<(), String>, Result<(), String>) {
    let mut node = Node::new(Topology::Ptp).unwrap();
    let pod = node.add("a", Attach::Pod, &["10.244.0.10".parse::<IpAddr>().unwrap()]).unwrap();
    let ns: Arc<Netns> = node.ns().clone();
    let pins = PinDir::new(&ns).unwrap();
    let index = node.rtnl().link(&pod.host_link).unwrap().index;
    ns.run(|| {
        keep(names).unwrap();
        let hooked = load(&Config::new(pins.path()), OBJECT)
            .and_then(|datapath| datapath.hooks.attach(index).map(drop))
            // Without what a verifier says at length.
            .map_err(|error| error.to_string());
        (hooked, Events::open().map(drop).map_err(|error| error.to_string()))
    })
}

#[test]
fn the_kernel_refuses_the_agent_without_any_of_them() {
    let all = shipped();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    assert_eq!(start_with(&all), (Ok(()), Ok(())), "they suffice");
    for missing in &all {
        let rest: Vec<&str> = all.iter().filter(|name| *name != missing).copied().collect();
        let (hooked, events) = start_with(&rest);
        println!("without {missing}: hooks {hooked:?}, events {events:?}");
        assert!(hooked.is_err() || events.is_err(), "{missing} is given and not needed");
        assert_eq!(*missing == "NET_BROADCAST", events.is_err(), "without {missing}: {events:?}");
    }
}

/// `policy-agent run --once` of root with these capabilities and no others.
fn run(node: &Node, agent: &Agent, names: &[&str]) -> Output {
    let caps: Vec<String> = names.iter().map(|name| format!("+{}", name.to_lowercase())).collect();
    let mut command = Command::new("setpriv");
    node.ns().enter_command(&mut command).unwrap();
    command
        .arg(format!("--bounding-set=-all,{}", caps.join(",")))
        .args(["--inh-caps=-all", "--no-new-privs"]);
    command.arg("--").arg(program_path("policy-agent").unwrap());
    command.args(["run", "--once", "--node-name", "node-1", "--manifests"]).arg(agent.manifests());
    command.arg("--bpffs").arg(agent.bpffs()).arg("--state-dir").arg(agent.state_dir());
    command.arg("--socket").arg(agent.socket()).stdin(Stdio::null()).env("NO_COLOR", "1");
    command.output().unwrap()
}

#[test]
fn what_is_missing_is_named_and_what_is_shipped_suffices() {
    let mut node = Node::new(Topology::Ptp).unwrap();
    let pod = node.add("a", Attach::Pod, &["10.244.0.10".parse().unwrap()]).unwrap();
    let agent = Agent::new(&node).unwrap();
    agent.write_manifest("pod.yaml", POD).unwrap();
    let all = shipped();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for missing in &all {
        let rest: Vec<&str> = all.iter().filter(|name| *name != missing).copied().collect();
        let output = run(&node, &agent, &rest);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{missing}: {told}");
        assert!(told.contains(&format!("missing capabilities: CAP_{missing}\n")), "{missing}: {told}");
        assert!(told.contains(&format!("hint: run as root, or with CAP_{missing}")), "{missing}: {told}");
        assert!(!agent.bpffs().exists(), "{missing}: something was changed");
    }
    let output = run(&node, &agent, &all);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if tcx_supported() {
        let index = node.rtnl().link(&pod.host_link).unwrap().index;
        let programs = |hook| node.ns().run(|| bpf::query_tcx(index, hook)).unwrap().len();
        assert_eq!([BPF_TCX_INGRESS, BPF_TCX_EGRESS].map(programs), [1, 1]);
    }
}
