//! etcd and kube-apiserver on an address of their own, for suites that need the real API and no nodes.

use super::{Client, Process, program};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

/// Longest time to become ready, on a machine that is busy with other suites.
const PATIENCE: Duration = Duration::from_secs(180);

/// How an API server is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Users without any permission beside the administrator; the token of `NAME` is `NAME-token`.
    pub users: Vec<String>,
    /// Further flags of kube-apiserver.
    pub flags: Vec<String>,
    /// With a current etcd, which lets the server stream lists, in place of an old one, which does not.
    pub streaming: bool,
}

/// A running API server, empty at first. It listens on a loopback address of its own, so several may run side by side
/// and a restarted one finds its port free. All of it goes with the value, also when a test panics.
///
/// There are no controllers: pods stay as they are created until their status is written, a deleted namespace stays
/// `Terminating`, and nobody makes service accounts (which admission therefore does not ask for).
#[derive(Debug)]
pub struct ApiServer {
    // The API server goes before its store.
    server: Option<Process>,
    etcd: Process,
    /// Address, such as `https://127.64.3.7:10002`.
    pub url: String,
    /// Path of the administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The administrator's token.
    pub token: String,
    etcd_url: String,
    options: Options,
    dir: tempfile::TempDir,
}

impl ApiServer {
    /// The administrator's token.
    const ADMIN: &str = "admin-token";

    /// Starts both and returns once the API is ready.
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    /// Starts both in a special way.
    pub fn start_with(options: Options) -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // No other process has this address: a process id fits into 22 bits.
        let address = Ipv4Addr::from(0x7f40_0000 | std::process::id() & 0x003f_ffff);
        let port = 10_000 + 10 * (number % 2_000);
        let dir = tempfile::Builder::new().prefix("policy-kube-").tempdir().context("make a folder")?;
        let etcd_url = format!("http://{address}:{port}");
        let mut etcd = Process::start("etcd", dir.path(), etcd(&options, dir.path(), address, port)?)?;
        let health = format!("{etcd_url}/health");
        etcd.until(PATIENCE, || curl(&["--fail", &health]).is_ok())?;
        write_keys(dir.path(), &options.users)?;
        let mut server = Self {
            server: None,
            etcd,
            url: format!("https://{address}:{}", port + 2),
            kubeconfig: dir.path().join("kubeconfig"),
            token: Self::ADMIN.to_owned(),
            etcd_url,
            options,
            dir,
        };
        server.restart()?;
        fs::write(&server.kubeconfig, server.kubeconfig_for(Self::ADMIN)?).context("write a kubeconfig")?;
        Ok(server)
    }

    /// Stops the API server; its objects stay in etcd.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.stop();
        }
    }

    /// Starts the API server, after stopping it if it runs; same address, same certificate, same objects.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let server = Process::start("kube-apiserver", self.dir.path(), self.command()?)?;
        let client = self.admin();
        let server = self.server.insert(server);
        server.until(PATIENCE, || client.request("GET", "/readyz", None).is_ok_and(|a| a.status == 200))
    }

    /// Forgets all history in etcd: an API server that is started after this answers old watches with 410 Gone.
    pub fn compact(&self) -> Result<()> {
        compact(&self.etcd_url)
    }

    /// Puts objects into etcd under their keys, past the API server: ten thousand in a second. They must be complete, as
    /// the server would store them, and it must be told to store JSON (`--storage-media-type=application/json`).
    pub fn store(&self, objects: &[(String, Value)]) -> Result<()> {
        // What etcd takes in one transaction.
        const AT_ONCE: usize = 100;
        let file = self.dir.path().join("transaction");
        for some in objects.chunks(AT_ONCE) {
            let put = |(key, value): &(String, Value)| {
                let key = base64(format!("/registry/{key}").as_bytes());
                json!({"requestPut": {"key": key, "value": base64(value.to_string().as_bytes())}})
            };
            let transaction = json!({"success": some.iter().map(put).collect::<Vec<_>>()});
            fs::write(&file, transaction.to_string()).context("write a transaction")?;
            let data = format!("@{}", file.display());
            let answer = curl(&["--fail", "--data-binary", &data, &format!("{}/v3/kv/txn", self.etcd_url)])?;
            ensure!(answer.contains("succeeded"), "etcd answers {answer}");
        }
        Ok(())
    }

    /// Somebody who may do everything.
    pub fn admin(&self) -> Client {
        self.client(&self.token)
    }

    /// The owner of a token.
    pub fn client(&self, token: &str) -> Client {
        Client::new(&self.url, &self.authority(), token)
    }

    /// The certificates that a client must trust.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("certs/apiserver.crt")
    }

    /// A kubeconfig for the owner of a token.
    pub fn kubeconfig_for(&self, token: &str) -> Result<String> {
        ensure!(self.authority().is_file(), "the API server has no certificate");
        let authority = self.authority();
        Ok(json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": authority}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        })
        .to_string())
    }

    /// Gives a ClusterRole to a user of [`Options::users`].
    pub fn bind(&self, user: &str, cluster_role: &str) -> Result<()> {
        self.bind_subject(&json!({"kind": "User", "name": user}), cluster_role)
    }

    /// Makes a service account and returns a token of it, as its pods would have one.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<String> {
        let admin = self.admin();
        let metadata = json!({"namespace": namespace, "name": name});
        admin.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}))?;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let ask = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer = admin.request("POST", &path, Some(("application/json", &ask)))?.fine()?;
        answer["status"]["token"].as_str().map(str::to_owned).context("no token in the answer")
    }

    /// Gives a ClusterRole to a service account.
    pub fn bind_service_account(&self, namespace: &str, name: &str, cluster_role: &str) -> Result<()> {
        let subject = json!({"kind": "ServiceAccount", "namespace": namespace, "name": name});
        self.bind_subject(&subject, cluster_role)
    }

    /// The end of the API server's log.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Process ids of etcd and, while it runs, of the API server.
    pub fn processes(&self) -> Vec<u32> {
        std::iter::once(&self.etcd).chain(&self.server).map(Process::id).collect()
    }

    fn bind_subject(&self, subject: &Value, cluster_role: &str) -> Result<()> {
        let name = format!("{}-{cluster_role}", subject["name"].as_str().unwrap_or_default());
        let group = "rbac.authorization.k8s.io";
        let mut binding = json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": cluster_role},
            "subjects": [subject],
        });
        if subject["kind"] == "User" {
            binding["subjects"][0]["apiGroup"] = group.into();
        }
        self.admin().apply(&binding).map(drop)
    }

    fn command(&self) -> Result<Command> {
        let dir = self.dir.path();
        let (address, port) = self.url.trim_start_matches("https://").split_once(':').context("a port")?;
        let mut command = Command::new(program("kube-apiserver")?);
        command
            .args(["--etcd-servers", &self.etcd_url, "--bind-address", address, "--secure-port", port])
            // Nobody reaches the API by its Service here, and a machine may have no address but loopback.
            .args(["--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none"])
            .arg("--cert-dir")
            .arg(dir.join("certs"))
            .arg("--service-account-key-file")
            .arg(dir.join("sa.pub"))
            .arg("--service-account-signing-key-file")
            .arg(dir.join("sa.key"))
            .args(["--service-account-issuer", "https://kubernetes.default.svc"])
            .args(["--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112"])
            .args(["--authorization-mode", "RBAC", "--allow-privileged=true"])
            .args(["--disable-admission-plugins", "ServiceAccount"])
            .arg("--token-auth-file")
            .arg(dir.join("tokens.csv"))
            .args(&self.options.flags);
        Ok(command)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Nothing of it is kept, so neither has to end in good order; the folder goes after the processes.
        if let Some(server) = &mut self.server {
            server.kill();
        }
        self.etcd.kill();
    }
}

fn etcd(options: &Options, dir: &Path, address: Ipv4Addr, port: u16) -> Result<Command> {
    let mut command = Command::new(program(if options.streaming { "etcd-current" } else { "etcd" })?);
    let client = format!("http://{address}:{port}");
    let peer = format!("http://{address}:{}", port + 1);
    command
        .args(["--name", "test", "--unsafe-no-fsync", "--log-level", "warn", "--data-dir"])
        .arg(dir.join("etcd"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")]);
    Ok(command)
}

/// Forgets all history of an etcd that can be reached from here.
pub(super) fn compact(etcd_url: &str) -> Result<()> {
    let ask = |path: &str, body: &Value| -> Result<Value> {
        let text = curl(&["--fail", "--data", &body.to_string(), &format!("{etcd_url}{path}")])?;
        serde_json::from_str(&text).context("read etcd's answer")
    };
    let answer = ask("/v3/kv/range", &json!({"key": "AA=="}))?;
    let revision = answer["header"]["revision"].as_str().context("etcd tells no revision")?.to_owned();
    ask("/v3/kv/compaction", &json!({"revision": revision, "physical": true})).map(drop)
}

/// The key that signs service account tokens, and the static tokens.
pub(super) fn write_keys(dir: &Path, users: &[String]) -> Result<()> {
    let openssl = |args: &[&str]| -> Result<()> {
        let output = Command::new("openssl").args(args).current_dir(dir).output().context("run openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key"])?;
    openssl(&["ec", "-in", "sa.key", "-pubout", "-out", "sa.pub"])?;
    let mut tokens = format!("{},admin,admin,system:masters\n", ApiServer::ADMIN);
    for user in users {
        tokens.push_str(&format!("{user}-token,{user},{user}\n"));
    }
    fs::write(dir.join("tokens.csv"), tokens).context("write the tokens")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().chain(&[0; 3]).take(3).fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= three.len() { char::from(DIGITS[value]) } else { '=' });
        }
    }
    text
}

fn curl(args: &[&str]) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*"]).args(args);
    let output = curl.output().context("start curl\nhint: apt-get install curl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_etcd_reads_them() {
        let all = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(all, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }
}
