//! What the runtime writes to the plugin's standard input: the configuration, and the result of the plugins before it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::Value;

/// Versions of the specification that we speak: those whose results list interfaces and addresses.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Seconds that ADD waits if the configuration does not say. A runtime's own limit is minutes.
const TIMEOUT: u64 = 10;

/// What ADD does when the policy is not in force in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It fails: the runtime tears the pod down and tries again.
    #[default]
    Fail,
    /// It succeeds: the pod starts without the guarantee, and standard error says so.
    Allow,
}

/// The configuration.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Version of the specification in which we answer.
    #[serde(default)]
    pub cni_version: String,
    /// Name of the network.
    #[serde(default)]
    pub name: String,
    /// Socket of the agent.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// Seconds that ADD waits for the agent.
    #[serde(default = "timeout")]
    pub timeout_seconds: u64,
    /// What ADD does when the policy is not in force by then.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Result of the plugins before us, passed on as it is.
    #[serde(default)]
    pub prev_result: Option<Value>,
}

fn socket() -> PathBuf {
    "/run/policy-agent/agent.sock".into()
}

fn timeout() -> u64 {
    TIMEOUT
}

/// The part of a result that we read.
#[derive(Debug, Default, Deserialize)]
struct Addresses {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Address {
    address: String,
    interface: Option<usize>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// What is not as the specification says.
    pub fn read(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// How long ADD waits.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// Addresses that the pod was given: those on an interface inside its network namespace, or on none that is named.
    ///
    /// # Errors
    /// The result is not as the specification says.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, serde_json::Error> {
        let Some(result) = &self.prev_result else { return Ok(Vec::new()) };
        let Addresses { interfaces, ips } = Addresses::deserialize(result)?;
        let inside = |index: Option<usize>| {
            index.and_then(|i| interfaces.get(i)).is_none_or(|interface| !interface.sandbox.is_empty())
        };
        let read = |ip: &Address| {
            let unreadable =
                || serde_json::Error::custom(format!("{:?} is no address with prefix", ip.address));
            ip.address.parse::<IpNet>().map(|net| net.addr()).map_err(|_| unreadable())
        };
        ips.iter().filter(|ip| inside(ip.interface)).map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = r#"{"cniVersion": "1.0.0", "name": "net", "type": "policy-agent-cni", "onFailure": "allow",
        "prevResult": {"cniVersion": "1.0.0",
          "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
          "ips": [{"address": "10.244.0.5/24", "gateway": "10.244.0.1", "interface": 2},
                  {"address": "fd00::5/64", "interface": 2}, {"address": "10.9.0.1/24", "interface": 0}]}}"#;

    #[test]
    fn addresses_of_the_pod_are_those_inside_its_namespace() {
        let config = Config::read(RESULT).unwrap();
        let wanted: Vec<IpAddr> = vec!["10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(config.addresses().unwrap(), wanted);
        assert_eq!((config.on_failure, config.timeout()), (OnFailure::Allow, Duration::from_secs(10)));
        let bare = Config::read(r#"{"prevResult": {"ips": [{"version": "4", "address": "10.0.0.2/32"}]}}"#);
        assert_eq!(bare.unwrap().addresses().unwrap(), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn what_is_not_as_specified_is_an_error() {
        assert!(Config::read("{").is_err());
        assert!(Config::read(r#"{"onFailure": "perhaps"}"#).unwrap_err().to_string().contains("perhaps"));
        let bad = Config::read(r#"{"prevResult": {"ips": [{"address": "10.0.0.300/24"}]}}"#).unwrap();
        assert!(bad.addresses().is_err());
    }
}
