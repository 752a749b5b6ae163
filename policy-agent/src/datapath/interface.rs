//! The words of interfaces: whose packets are judged, and by which endpoint.

use policy_common::abi::{InterfaceWord, interface_flags, interface_kind, limits};

use super::error::Result;
use super::executor::Executor;
use super::map::{bytes_of, from_bytes};
use super::spec::MapId;

impl Executor {
    /// Tells the programs which endpoint an interface belongs to: from here on each of them judges its packets, as soon
    /// as it is attached. Until [`Executor::set_interface`], a packet that another program meets without a tag is taken
    /// as one that came before the hooks. A pod's interface that has its hooks already goes to the endpoint at once.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn announce_interface(&self, ifindex: u32, slot: u16) -> Result<()> {
        let there = self.interface_word(ifindex)?;
        let hooked = there.kind == interface_kind::POD && there.flags & interface_flags::ATTACHING == 0;
        // An element of a hash is never replaced while programs read it, if that can be helped.
        let extra = InterfaceWord::unpack(self.iface.load(ifindex % limits::INTERFACES, 0)?).ifindex;
        let flags = if hooked || (extra != 0 && extra != ifindex) { 0 } else { interface_flags::ATTACHING };
        self.store_interface(InterfaceWord { ifindex, slot, kind: interface_kind::POD, flags })
    }

    /// Tells the programs which endpoint an interface belongs to, with its hooks in place.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_interface(&self, ifindex: u32, slot: u16) -> Result<()> {
        self.store_interface(InterfaceWord { ifindex, slot, kind: interface_kind::POD, flags: 0 })
    }

    /// Tells the programs that the interface is no pod's. `flags`: bits of [`policy_common::abi::interface_flags`].
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_exit(&self, ifindex: u32, flags: u8) -> Result<()> {
        self.store_interface(InterfaceWord { ifindex, slot: 0, kind: interface_kind::EXIT, flags })
    }

    fn store_interface(&self, interface: InterfaceWord) -> Result<()> {
        let (ifindex, word) = (interface.ifindex, interface.pack());
        let place = ifindex % limits::INTERFACES;
        let there = InterfaceWord::unpack(self.iface.load(place, 0)?);
        if there.ifindex == 0 || there.ifindex == ifindex {
            return self.store_iface(place, word);
        }
        if self.interface_word(ifindex)? == interface {
            return Ok(());
        }
        self.store_iface_x(ifindex, Some(word))
    }

    /// Forgets an interface: its packets pass unjudged, where a hook is still in place.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn clear_interface(&self, ifindex: u32) -> Result<()> {
        let place = ifindex % limits::INTERFACES;
        if InterfaceWord::unpack(self.iface.load(place, 0)?).ifindex == ifindex {
            self.store_iface(place, 0)?;
        }
        self.store_iface_x(ifindex, None)
    }

    /// Slot of an interface, if its packets are judged.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn interface(&self, ifindex: u32) -> Result<Option<u16>> {
        let word = self.interface_word(ifindex)?;
        Ok((word.kind == interface_kind::POD).then_some(word.slot))
    }

    /// As the programs find it.
    fn interface_word(&self, ifindex: u32) -> Result<InterfaceWord> {
        let word = InterfaceWord::unpack(self.iface.load(ifindex % limits::INTERFACES, 0)?);
        if word.ifindex == ifindex {
            return Ok(word);
        }
        let map = &self.maps[MapId::IfaceX];
        let extra = map.get(bytes_of(&ifindex)).map_err(map.failed("read"))?;
        Ok(extra.and_then(|v| from_bytes(&v)).map(InterfaceWord::unpack).unwrap_or_default())
    }
}
