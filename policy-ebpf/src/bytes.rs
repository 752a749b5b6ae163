//! The linear part of the packet, read directly.

use policy_common::packet::Bytes;

use crate::skb::Skb;

/// Direct packet access: 46 ns for a long IPv6 header chain, where the copying helper takes 211.
pub(crate) struct Direct {
    data: usize,
    end: usize,
    zero: u32,
}

impl Direct {
    /// The linear part as it is now; void after [`Skb::pull_more`]. `zero` is a 0 of which the verifier knows nothing.
    #[inline(always)]
    pub(crate) fn new(skb: Skb, zero: u64) -> Self {
        Self { data: skb.data() as usize, end: skb.data_end() as usize, zero: zero as u32 }
    }
}

impl Bytes for Direct {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.data + offset;
        if start + N > self.end {
            return None;
        }
        // SAFETY: the bytes are within the packet, as the verifier checks too.
        Some(unsafe { (start as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let start = self.data + offset;
        if start + N * 4 > self.end {
            return None;
        }
        // SAFETY: the words are within the packet. The IP header is aligned to two bytes at least; the architectures we
        // build for load words from there, and the verifier knows which do. An `[u8]` read would be byte by byte.
        Some(unsafe { (start as *const [u32; N]).read() })
    }

    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        // A sum, so that a mask behind it stays behind it: of an exclusive or LLVM masks both sides instead.
        value.wrapping_add(self.zero)
    }
}
