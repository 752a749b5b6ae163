//! The endpoint that a packet's tag names: who sent it, whatever its source address has become.

use crate::abi::{LocalKey, endpoint_words, tag};
use crate::family::Family;
use crate::flow::{FlowMaps, Host};

/// The tag's endpoint as the endpoint of its own words.
struct Tagged<'a, H>(&'a H);

impl<H: Host> Host for Tagged<'_, H> {
    #[inline(always)]
    fn slot(&self) -> u16 {
        tag::slot(self.0.tag())
    }
    #[inline(always)]
    fn endpoint(&self, word: u32) -> u64 {
        self.0.tagged(word)
    }
    #[inline(always)]
    fn meta(&self, word: u32) -> u64 {
        self.0.meta(word)
    }
    #[inline(always)]
    fn now(&self) -> u32 {
        self.0.now()
    }
    #[inline(always)]
    fn tag(&self) -> u16 {
        self.0.tag()
    }
    #[inline(always)]
    fn tagged(&self, word: u32) -> u64 {
        self.0.tagged(word)
    }
}

/// Whether the tag is valid and its endpoint still the one that left it.
#[inline(always)]
pub fn is_current<H: Host>(host: &H) -> bool {
    host.tag() & tag::VALID != 0 && names(host.tag(), host.tagged(endpoint_words::IDENTITY))
}

/// Whether a valid tag was left by the endpoint with this word of identity.
#[inline(always)]
#[must_use]
pub const fn names(mark: u16, identity: u64) -> bool {
    identity as u32 != 0 && mark & !tag::DEFERRED == tag::new(tag::slot(mark), (identity >> 48) as u16)
}

/// First address of the tag's endpoint, unspecified when it has none of the family.
#[inline(always)]
pub(crate) fn address<F: Family, H: Host>(host: &H) -> F::Address {
    F::first_address(&Tagged(host))
}

/// Whether the tag's endpoint has the address.
#[inline(always)]
pub(crate) fn has<F: Family, M: FlowMaps<F> + Host>(maps: &M, address: &F::Address) -> bool {
    if *address == self::address::<F, M>(maps) {
        return true;
    }
    let slot = tag::slot(maps.tag()) as u32;
    maps.local(&LocalKey { slot, family: F::NUMBER as u32, address: F::wide(address) }) != 0
}
