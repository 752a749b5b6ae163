//! Whole nodes: kubelet, containerd, CNI plugins and kube-proxy, one or two of them, with the control plane on the first.

mod config;
pub mod lan;
mod machine;
mod pods;

use super::{Client, compact, program, programs, write_keys};
use crate::net::Netns;
use anyhow::{Context, Result, ensure};
use machine::Machine;
use serde_json::{Value, json};
use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

pub use machine::Machine as Node;
pub use pods::{PORT, Pod};

/// Beginning of the names of everything that is not inside a node: namespaces, control groups.
const PREFIX: &str = "policy-cluster-";
/// Where everything is kept while a cluster runs; one at a time on a machine.
const STATE: &str = "/var/tmp/policy-cluster";
const API_SERVER: &str = "kube-apiserver";
/// Where etcd listens on the first node.
const ETCD: &str = "http://127.0.0.1:2379";
const TOKEN: &str = "admin-token";
const PATIENCE: Duration = Duration::from_secs(240);

/// How pods get their interfaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Cni {
    /// A link of its own for each pod, routed.
    #[default]
    Ptp,
    /// All pods of a node on one bridge.
    Bridge,
}

/// How kube-proxy translates Services.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Proxy {
    /// With iptables.
    #[default]
    Iptables,
    /// With nftables.
    Nftables,
}

/// What a cluster is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Number of nodes: 1 or 2.
    pub nodes: u8,
    /// How pods get their interfaces.
    pub cni: Cni,
    /// How Services are translated.
    pub proxy: Proxy,
    /// Whether pods and Services have addresses of both families.
    pub dual_stack: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { nodes: 1, cni: Cni::Ptp, proxy: Proxy::Iptables, dual_stack: false }
    }
}

/// A running cluster. It outlives the value and the process; [`Cluster::down`] ends it.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Machine>,
    shape: Shape,
    _lock: UnixListener,
}

impl Cluster {
    /// Starts a cluster and returns once its nodes are ready.
    ///
    /// # Errors
    /// One runs already, or something does not start; nothing is left then.
    pub fn up(shape: Shape) -> Result<Self> {
        ensure!((1..=2).contains(&shape.nodes), "a cluster has 1 or 2 nodes");
        let lock = lock()?;
        ensure!(
            !Path::new(STATE).join("up").exists() && !lan::namespace(lan::LAN).exists(),
            "a cluster is up\nhint: cargo xtask cluster down"
        );
        // Behind one that was ended roughly.
        remove()?;
        let started = start(shape);
        if started.is_err() && std::env::var_os("POLICY_CLUSTER_KEEP").is_none() {
            drop(remove());
        }
        let nodes = started?;
        fs::write(Path::new(STATE).join("up"), format!("{shape:?}\n")).context("write a mark")?;
        Ok(Self { nodes, shape, _lock: lock })
    }

    /// Ends the cluster of this machine; there need be none.
    pub fn down() -> Result<()> {
        let _lock = lock()?;
        remove()
    }

    /// The nodes; the first has the control plane.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What the cluster is like.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Somebody who may do everything.
    pub fn admin(&self) -> Client {
        admin()
    }

    /// `kubectl` as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        lan::output(self.kubectl_command()?.args(arguments))
    }

    /// A `kubectl` to be started.
    pub fn kubectl_command(&self) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", lan::namespace("node1").display()));
        command.arg(program("kubectl")?).arg("--kubeconfig").arg(kubeconfig());
        Ok(command)
    }

    /// Makes an image known to every node.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| machine::import(node, archive))
    }

    /// Ends the API server at once; its objects stay in etcd, and everything else goes on as it can.
    ///
    /// # Errors
    /// None runs, or it does not end.
    pub fn stop_api_server(&self) -> Result<()> {
        self.nodes[0].kill(API_SERVER)
    }

    /// Starts the API server again and returns once it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_api_server(&self) -> Result<()> {
        start_api_server(&self.nodes[0], self.shape)
    }

    /// Forgets all history in etcd: an API server that is started after this answers old watches with 410 Gone.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn compact(&self) -> Result<()> {
        let file = fs::File::open(lan::namespace(self.nodes[0].name())).context("open a node's network")?;
        Netns::from_file(file).run(|| compact(ETCD))
    }

    /// Logs of the nodes' servers, for a test that failed.
    pub fn logs(&self) -> String {
        let servers = ["kubelet", "containerd", "kube-proxy"];
        let of =
            |node: &Machine| servers.map(|s| format!("== {} {s}\n{}\n", node.name(), node.log(s))).concat();
        self.nodes.iter().map(of).collect()
    }
}

/// Path of the administrator's kubeconfig; it is good for processes in the first node's network.
pub fn kubeconfig() -> PathBuf {
    Path::new(STATE).join("kubeconfig")
}

/// Name of a node.
pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

fn admin() -> Client {
    Client::new(&url(), &Path::new(STATE).join("pki/apiserver.crt"), TOKEN).inside(&lan::namespace("node1"))
}

fn url() -> String {
    format!("https://{}:6443", lan::node_ips(1)[0])
}

fn start(shape: Shape) -> Result<Vec<Machine>> {
    let state = Path::new(STATE);
    fs::create_dir_all(state).context("make the cluster's folder")?;
    lan::up(shape.nodes)?;
    write_keys(state, &[])?;
    // Name servers of this machine are not reachable from the nodes.
    fs::write(state.join("resolv.conf"), "search cluster.local\n").context("write resolv.conf")?;
    let first = Machine::start(1)?;
    control_plane(&first, shape)?;
    let mut nodes = vec![first];
    for number in 2..=shape.nodes {
        nodes.push(Machine::start(number)?);
    }
    for (number, node) in (1..).zip(&nodes) {
        start_node(node, number, shape)?;
    }
    until("all nodes are ready", || {
        let list = admin().get("/api/v1/nodes")?;
        let ready = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        let count = list["items"].as_array().into_iter().flatten().filter(|node| ready(node)).count();
        Ok(count == usize::from(shape.nodes))
    })
    .with_context(|| {
        nodes.iter().map(|n| format!("{}\n{}", n.log("kubelet"), n.log("containerd"))).collect::<String>()
    })?;
    // Pods are refused until the namespace's account is there.
    until("the default account is made", || {
        Ok(admin().request("GET", "/api/v1/namespaces/default/serviceaccounts/default", None)?.status == 200)
    })?;
    Ok(nodes)
}

fn start_api_server(node: &Machine, shape: Shape) -> Result<()> {
    let state = Path::new(STATE);
    let services = if shape.dual_stack { "10.96.0.0/16,fd00:10:96::/112" } else { "10.96.0.0/16" };
    let mut api = node.command(&program(API_SERVER)?);
    api.args(["--etcd-servers", ETCD, "--bind-address", "0.0.0.0"])
        .args(["--advertise-address", &lan::node_ips(1)[0].to_string(), "--cert-dir"])
        .arg(state.join("pki"))
        .arg("--service-account-key-file")
        .arg(state.join("sa.pub"))
        .arg("--service-account-signing-key-file")
        .arg(state.join("sa.key"))
        .args(["--service-account-issuer", "https://kubernetes.default.svc"])
        .args(["--service-cluster-ip-range", services, "--authorization-mode", "RBAC"])
        .args([
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            "--token-auth-file",
        ])
        .arg(state.join("tokens.csv"));
    node.server(API_SERVER, api)?;
    until("the API server is ready", || Ok(admin().request("GET", "/readyz", None)?.status == 200))
        .with_context(|| node.log(API_SERVER))
}

fn control_plane(node: &Machine, shape: Shape) -> Result<()> {
    let state = Path::new(STATE);
    let mut etcd = node.command(&program("etcd")?);
    etcd.args(["--unsafe-no-fsync", "--log-level", "warn", "--data-dir"]).arg(state.join("etcd"));
    node.server("etcd", etcd)?;
    start_api_server(node, shape)?;
    let authority = state.join("pki/apiserver.crt");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "cluster",
        "clusters": [{"name": "cluster", "cluster": {"server": url(), "certificate-authority": authority}}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": "admin"}}],
    });
    fs::write(kubeconfig(), config.to_string()).context("write the kubeconfig")?;
    let mut manager = node.command(&program("kube-controller-manager")?);
    manager
        .arg("--kubeconfig")
        .arg(kubeconfig())
        .arg("--service-account-private-key-file")
        .arg(state.join("sa.key"));
    manager.arg("--root-ca-file").arg(&authority).args(["--leader-elect=false"]);
    node.server("kube-controller-manager", manager)?;
    let mut scheduler = node.command(&program("kube-scheduler")?);
    scheduler.arg("--kubeconfig").arg(kubeconfig()).arg("--leader-elect=false");
    node.server("kube-scheduler", scheduler)
}

fn start_node(node: &Machine, number: u8, shape: Shape) -> Result<()> {
    let dir = node.folder();
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display())).map(|()| path)
    };
    // A disk's folder, as overlays are made in it.
    let root = dir.join("containerd");
    let file = write("containerd.toml", config::containerd(&root.display().to_string()))?;
    write("etc/cni/net.d/10-pods.conflist", config::cni(number, shape.cni, shape.dual_stack).to_string())?;
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs::folder().display());
    let mut containerd = node.command(&program("containerd")?);
    node.server("containerd", {
        containerd.arg("--config").arg(file).env("PATH", &path);
        containerd
    })?;
    until("containerd answers", || {
        let mut ctr = node.command(&program("ctr")?);
        Ok(ctr.arg("version").output().is_ok_and(|done| done.status.success()))
    })
    .with_context(|| node.log("containerd"))?;
    for image in ["pause", "agnhost"] {
        machine::import(node, &programs::folder().with_file_name("images").join(format!("{image}.tar")))?;
    }
    let resolv = Path::new(STATE).join("resolv.conf").display().to_string();
    let file = write("kubelet.json", config::kubelet(number, &resolv).to_string())?;
    let families = if shape.dual_stack { 2 } else { 1 };
    let ips: Vec<String> = lan::node_ips(number)[..families].iter().map(ToString::to_string).collect();
    let mut kubelet = node.command(&program("kubelet")?);
    kubelet.arg("--config").arg(file).arg("--kubeconfig").arg(kubeconfig()).env("PATH", &path);
    kubelet.args(["--hostname-override", node.name(), "--node-ip", &ips.join(",")]);
    node.server("kubelet", kubelet)?;
    let kubeconfig = kubeconfig().display().to_string();
    let file = write("kube-proxy.json", config::kube_proxy(number, shape.proxy, &kubeconfig).to_string())?;
    let mut proxy = node.command(&program("kube-proxy")?);
    node.server("kube-proxy", {
        proxy.arg("--config").arg(file).env("PATH", &path);
        proxy
    })
}

/// Ends everything and removes everything, in whatever state it is.
fn remove() -> Result<()> {
    machine::end_all()?;
    lan::down()?;
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    ensure!(!mounts.contains(STATE), "something is mounted below {STATE}");
    match fs::remove_dir_all(STATE) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("remove the cluster's folder")
        }
        _ => Ok(()),
    }
}

/// One process at a time changes the cluster. The name goes with the process, so nothing is left behind.
fn lock() -> Result<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("{PREFIX}lock")).context("name a lock")?;
    UnixListener::bind_addr(&name).context("another process uses the cluster")
}

/// Waits for something that must come.
pub fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = done();
        if matches!(found, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > end {
            return found
                .and_then(|_| Err(anyhow::anyhow!("in vain")))
                .with_context(|| format!("wait until {what}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
