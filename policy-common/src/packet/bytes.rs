//! Where the bytes of a packet come from.

/// A frame. Reads beyond its end give `None`.
pub trait Bytes {
    /// `N` bytes from `offset`.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// `N` words of four bytes from `offset`, in network order. One bounds check for a whole header; the kernel's
    /// implementation reads whole words, which is faster than the bytes one by one.
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (i, word) in words.iter_mut().enumerate() {
            *word = u32::from_ne_bytes(self.load(offset + i * 4)?);
        }
        Some(words)
    }

    /// `value`. In the kernel the verifier loses what it knew of it, so that the paths which led to it join: it walks
    /// every combination of what it can tell apart.
    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        value
    }
}

/// Bytes that headers may take: what the verifier knows of an offset that it had to forget.
pub(super) const OFFSET_MASK: u32 = 0x3fff;

/// A frame in memory.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a>(pub &'a [u8]);

impl Bytes for Slice<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }
}
