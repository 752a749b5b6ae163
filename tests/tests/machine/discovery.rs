//! Finding pods' interfaces over netlink, in nodes of real namespaces.

use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use policy_agent::netlink::{Change, Discovery, Events};
use policy_tests::net::{Attach, Node, Rtnl, Topology};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What happens until `done` says that it was seen; the limit only bounds a test that fails.
fn until(events: &Events, mut done: impl FnMut(&Change) -> bool) -> Change {
    let (mut all, limit) = (Change::default(), Instant::now() + Duration::from_secs(60));
    while !done(&all) {
        assert!(Instant::now() < limit, "the event is missing: {all:?}");
        all.merge(events.wait(Duration::from_millis(100)).unwrap());
    }
    all
}

fn finds_pods_by_their_addresses(topology: Topology) {
    let mut node = Node::new(topology).unwrap();
    let (events, discovery) = node.ns().run(|| (Events::open().unwrap(), Discovery::open().unwrap()));
    assert!(discovery.snapshot().unwrap().by_address.is_empty(), "the uplink's peer has no address yet");
    let a = node.add("a", Attach::Pod, &[ip("10.244.0.10"), ip("fd00:10:244::a")]).unwrap();
    let b = node.add("b", Attach::Pod, &[ip("10.244.0.11")]).unwrap();
    node.add("out", Attach::Outside, &[ip("203.0.113.5")]).unwrap();
    let a_index = node.rtnl().link(&a.host_link).unwrap().index;
    let seen = until(&events, |c| c.pod_addresses && c.links.contains(&a_index));
    assert!(!seen.lost);

    let all = discovery.snapshot().unwrap();
    for address in ["10.244.0.10", "fd00:10:244::a"] {
        let link = all.of_address(ip(address)).unwrap();
        assert_eq!((link.ifindex, link.name.as_str()), (a_index, a.host_link.as_str()), "{address}");
    }
    let link = all.of_name(&b.host_link).unwrap();
    assert!(link.addresses.contains(&ip("10.244.0.11")) && link.kind == "veth");
    assert!(
        all.of_address(ip("203.0.113.5")).is_some(),
        "the uplink looks like a pod's link: it is for others to say"
    );
    assert!(all.of_address(ip("127.0.0.1")).is_none());
    assert!(all.ambiguous.is_empty());
    for own in [IpAddr::from(Node::ADDRESS4), Node::ADDRESS6.into(), Node::GATEWAY4.into(), ip("127.0.0.1")] {
        assert!(all.host_addresses.contains(&own), "{own}");
    }
    assert!(!all.host_addresses.contains(&ip("10.244.0.10")));

    let path = PathBuf::from(format!("/proc/self/fd/{}", b.ns.raw_fd()));
    let found = discovery.links_of_netns(&path).unwrap();
    assert_eq!(found.iter().map(|l| &l.name).collect::<Vec<_>>(), [&b.host_link]);

    node.remove("a").unwrap();
    until(&events, |c| c.links.contains(&a_index));
    let all = discovery.snapshot().unwrap();
    assert!(all.of_address(ip("10.244.0.10")).is_none() && !all.links.contains_key(&a_index));
}

#[test]
fn ptp_pods_are_found_by_their_addresses() {
    finds_pods_by_their_addresses(Topology::Ptp);
}

#[test]
fn bridge_pods_are_found_by_their_addresses() {
    finds_pods_by_their_addresses(Topology::Bridge);
}

#[test]
fn an_address_that_two_pods_have_belongs_to_none() {
    let mut node = Node::new(Topology::Ptp).unwrap();
    let discovery = node.ns().run(|| Discovery::open().unwrap());
    let a = node.add("a", Attach::Pod, &[ip("10.244.0.10")]).unwrap();
    let b = node.add("b", Attach::Pod, &[ip("10.244.0.11")]).unwrap();
    let rtnl = b.ns.run(|| Rtnl::open().unwrap());
    let eth0 = rtnl.link(Node::POD_LINK).unwrap().index;
    rtnl.add_address(eth0, IpNet::from(ip("10.244.0.10"))).unwrap();
    let all = discovery.snapshot().unwrap();
    assert!(all.of_address(ip("10.244.0.10")).is_none());
    let mut both: Vec<u32> = [&a, &b].iter().map(|h| node.rtnl().link(&h.host_link).unwrap().index).collect();
    both.sort_unstable();
    assert_eq!(all.ambiguous[&ip("10.244.0.10")], both);
    assert_eq!(all.of_address(ip("10.244.0.11")).unwrap().name, b.host_link);
    rtnl.delete_address(eth0, IpNet::from(ip("10.244.0.10"))).unwrap();
    assert_eq!(discovery.snapshot().unwrap().of_address(ip("10.244.0.10")).unwrap().name, a.host_link);
}

#[test]
fn an_address_on_another_interface_of_the_pod_is_not_the_links() {
    let mut node = Node::new(Topology::Ptp).unwrap();
    let discovery = node.ns().run(|| Discovery::open().unwrap());
    let a = node.add("a", Attach::Pod, &[ip("10.244.0.10")]).unwrap();
    let rtnl = a.ns.run(|| Rtnl::open().unwrap());
    rtnl.add_address(1, IpNet::from(ip("10.99.0.1"))).unwrap(); // on lo
    let all = discovery.snapshot().unwrap();
    assert!(all.of_address(ip("10.99.0.1")).is_none());
    assert!(all.of_address(ip("10.244.0.10")).is_some());
}

#[test]
fn namespace_ids_that_are_used_again_mislead_nobody() {
    let mut node = Node::new(Topology::Ptp).unwrap();
    let (events, discovery) = node.ns().run(|| (Events::open().unwrap(), Discovery::open().unwrap()));
    for round in 0..10u8 {
        let (name, address) = (format!("p{round}"), IpAddr::from([10, 244, 1, round]));
        let pod = node.add(&name, Attach::Pod, &[address]).unwrap();
        let all = discovery.snapshot().unwrap();
        assert_eq!(all.of_address(address).unwrap().name, pod.host_link);
        assert_eq!(all.by_address.len(), 1, "only the pod of this round: {:?}", all.by_address);
        node.remove(&name).unwrap();
        drop(pod);
    }
    until(&events, |c| c.namespaces && c.pod_addresses);
}

#[test]
fn the_hosts_own_addresses_follow_every_interface() {
    let node = Node::new(Topology::Bridge).unwrap();
    let (events, discovery) = node.ns().run(|| (Events::open().unwrap(), Discovery::open().unwrap()));
    let bridge = node.rtnl().link("cni0").unwrap().index;
    node.rtnl().add_address(bridge, "198.51.100.1/24".parse().unwrap()).unwrap();
    until(&events, |c| c.host_addresses);
    assert!(discovery.snapshot().unwrap().host_addresses.contains(&ip("198.51.100.1")));
    node.rtnl().delete_address(bridge, "198.51.100.1/24".parse().unwrap()).unwrap();
    until(&events, |c| c.host_addresses);
    assert!(!discovery.snapshot().unwrap().host_addresses.contains(&ip("198.51.100.1")));
}

#[test]
fn lost_events_are_told() {
    let mut node = Node::new(Topology::Ptp).unwrap();
    let events = node.ns().run(|| Events::open().unwrap());
    let size: libc::c_int = 1; // the kernel takes its minimum, a few messages
    // SAFETY: points to one integer, as the length says.
    let done = unsafe {
        let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVBUF);
        libc::setsockopt(events.as_raw_fd(), level, option, (&raw const size).cast(), size_of_val(&size) as _)
    };
    assert_eq!(done, 0);
    for round in 0..8u8 {
        node.add(&format!("p{round}"), Attach::Pod, &[IpAddr::from([10, 244, 1, round])]).unwrap();
    }
    assert!(until(&events, |c| c.lost).lost);
    node.add("late", Attach::Pod, &[ip("10.244.2.1")]).unwrap();
    until(&events, |c| c.pod_addresses || c.lost);
}

#[test]
fn what_is_no_network_namespace_is_an_error() {
    let node = Node::new(Topology::Ptp).unwrap();
    let discovery = node.ns().run(|| Discovery::open().unwrap());
    assert!(discovery.links_of_netns("/nonexistent/ns".as_ref()).is_err());
    assert!(discovery.links_of_netns("/dev/null".as_ref()).is_err());
}
