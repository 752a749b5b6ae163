//! Somebody else at the kernel's maps, links and pins of an agent: what the self-check must find.

use anyhow::{Context, Result};
use policy_agent::datapath::{Hook, Map, Pins, Words, bpf, spec::MapId};
use policy_common::abi::{EndpointWord, endpoint_words, limits};
use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

/// The maps behind an agent's pins, opened anew for each change.
#[derive(Clone, Debug)]
pub struct Tamper {
    pins: Pins,
}

impl Tamper {
    /// The maps of this pin directory.
    pub fn new(bpffs: &Path) -> Self {
        Self { pins: Pins::new(bpffs) }
    }

    /// A map.
    pub fn map(&self, map: MapId) -> Result<Map> {
        Ok(Map::new(bpf::open_pin(&self.pins.map(map))?, map.spec())?)
    }

    /// A map of words.
    pub fn words(&self, map: MapId) -> Result<Words> {
        Ok(self.map(map)?.words()?)
    }

    /// The pin of a map.
    pub fn map_pin(&self, map: MapId) -> PathBuf {
        self.pins.map(map)
    }

    /// The pin of a link.
    pub fn link_pin(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.pins.link(ifindex, hook)
    }

    /// The pinned link.
    pub fn link(&self, ifindex: u32, hook: Hook) -> Result<OwnedFd> {
        bpf::open_pin(&self.pins.link(ifindex, hook)).context("open the link")
    }

    /// Slot of the endpoint with this address, and its interface.
    pub fn endpoint(&self, address: Ipv4Addr) -> Result<(u16, u32)> {
        let words = self.words(MapId::Ep)?;
        let wanted = u32::from_ne_bytes(address.octets());
        for slot in 1..limits::ENDPOINTS {
            let is_used = words.load(slot, endpoint_words::IDENTITY)? as u32 != 0;
            if is_used && words.load(slot, endpoint_words::ADDRESS4)? as u32 == wanted {
                return Ok((u16::try_from(slot)?, words.load(slot, endpoint_words::INTERFACE)? as u32));
            }
        }
        anyhow::bail!("no endpoint has {address}")
    }

    /// Rows and epoch of an endpoint.
    pub fn word(&self, slot: u16) -> Result<EndpointWord> {
        let words = self.words(MapId::Ep)?;
        Ok(EndpointWord::unpack(words.load(u32::from(slot), endpoint_words::POLICY)?))
    }

    /// Stores them.
    pub fn store_word(&self, slot: u16, word: EndpointWord) -> Result<()> {
        Ok(self.words(MapId::Ep)?.store(u32::from(slot), endpoint_words::POLICY, word.pack())?)
    }

    /// The host slot of an address.
    pub fn host(&self, address: IpAddr) -> Result<u32> {
        let (map, key) = host_key(address);
        let value = self.map(map)?.get(&key)?.with_context(|| format!("{address} is not known"))?;
        Ok(u32::from_ne_bytes(value.as_slice().try_into()?))
    }
}

/// Map and key of an address.
pub fn host_key(address: IpAddr) -> (MapId, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (MapId::Hosts4, address.octets().to_vec()),
        IpAddr::V6(address) => (MapId::Hosts6, address.octets().to_vec()),
    }
}

/// A tc program that returns this and does nothing else.
pub fn program(returns: i32) -> Result<OwnedFd> {
    let code = [bpf::instruction(0xb7, 0, 0, returns), bpf::instruction(0x95, 0, 0, 0)];
    bpf::load_tc("stranger", &code).context("load a program")
}

/// Another map in the place of a flow map.
pub fn flow_map(map: MapId) -> Result<OwnedFd> {
    let spec = map.inner().context("it has inner maps")?;
    bpf::create_map(&spec, 64, None).context("make a map")
}

/// Puts this program behind a link.
pub fn replace(link: &OwnedFd, program: &OwnedFd) -> Result<()> {
    bpf::update_link(link.as_fd(), program.as_fd()).context("replace the program")
}
