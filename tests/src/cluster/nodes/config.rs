//! Configuration of the node's programs: as a distribution would have it, but for what this machine may lack.

use super::{Cni, Proxy, lan, node_name};
use serde_json::{Value, json};

/// Where containerd listens, as kubelets and administrators expect it.
pub(super) const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Name of the image whose program holds a pod's namespaces.
const PAUSE: &str = "policy-agent.local/pause:dev";

/// containerd's file. What it keeps is on a disk: an overlay cannot have its upper part on every file system.
pub(super) fn containerd(root: &str) -> String {
    format!(
        "version = 2\nroot = \"{root}\"\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n\
         # Without CAP_SYS_RESOURCE no score can be lowered.\nrestrict_oom_score_adj = true\n\
         sandbox_image = \"{PAUSE}\"\n\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"/opt/cni/bin\"\nconf_dir = \"/etc/cni/net.d\"\n"
    )
}

/// The list of CNI plugins.
pub(super) fn cni(number: u8, cni: Cni, dual_stack: bool) -> Value {
    let subnets = lan::pod_subnets(number);
    let families = if dual_stack { 2 } else { 1 };
    let ranges: Vec<Value> = subnets[..families].iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    let routes: Vec<Value> = ["0.0.0.0/0", "::/0"][..families].iter().map(|to| json!({"dst": to})).collect();
    let ipam = json!({"type": "host-local", "ranges": ranges, "routes": routes});
    let plugin = match cni {
        Cni::Ptp => json!({"type": "ptp", "ipMasq": false, "ipam": ipam}),
        Cni::Bridge => json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
            "hairpinMode": true, "ipam": ipam}),
    };
    let ports = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin, ports]})
}

/// The kubelet's configuration.
pub(super) fn kubelet(number: u8, resolv_conf: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}{}", super::PREFIX, node_name(number)),
        "failCgroupV1": false, "failSwapOn": false,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        // A full disk of the machine is no reason to stop the tests' pods.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%",
            "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "resolvConf": resolv_conf, "staticPodPath": "/etc/kubernetes/manifests",
        "syncFrequency": "10s", "fileCheckFrequency": "2s",
    })
}

/// kube-proxy's configuration.
pub(super) fn kube_proxy(number: u8, proxy: Proxy, kubeconfig: &str) -> Value {
    let mode = match proxy {
        Proxy::Iptables => "iptables",
        Proxy::Nftables => "nftables",
    };
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": mode, "hostnameOverride": node_name(number),
        "clientConnection": {"kubeconfig": kubeconfig},
        "clusterCIDR": "10.244.0.0/16,fd00:10:244::/48",
        // The limit belongs to the machine, and may not be written from a namespace.
        "conntrack": {"maxPerCore": 0},
    })
}
