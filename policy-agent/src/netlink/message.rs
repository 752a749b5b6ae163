//! Netlink messages as bytes: a writer, and readers that skip what they do not know.
//!
//! Kernels add attributes and lengthen old ones, and one link that can't be read must not hide all others: only the
//! few attributes that matter are looked at, and nothing else is decoded.

const HEADER: usize = 16;
const TYPE_MASK: u16 = 0x3fff;

/// A request under construction.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message of this type and these flags, beginning with a fixed part.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push(&mut self.bytes, kind, value);
        self
    }

    /// Adds an attribute that consists of attributes.
    pub(crate) fn nested(self, kind: u16, parts: &[(u16, &[u8])]) -> Self {
        let mut inner = Vec::new();
        for (kind, value) in parts {
            push(&mut inner, *kind, value);
        }
        self.attribute(kind, &inner)
    }

    /// The message with its length and sequence number.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = (4 + value.len()) as u16;
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message as it was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// Type.
    pub(crate) kind: u16,
    /// Sequence number of the request that it answers; 0 for events.
    pub(crate) sequence: u32,
    /// Flags.
    pub(crate) flags: u16,
    /// Everything behind the header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Attributes behind a fixed part of this many bytes.
    pub(crate) fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes { rest: self.body.get(fixed..).unwrap_or(&[]) }
    }

    /// A 32-bit integer of the body.
    pub(crate) fn u32_at(&self, offset: usize) -> Option<u32> {
        u32_of(self.body.get(offset..)?)
    }

    /// The code of an error or of the end of a dump: 0 or a negative errno.
    pub(crate) fn code(&self) -> i32 {
        self.u32_at(0).unwrap_or(0) as i32
    }
}

/// The messages of a datagram; what is cut short is left out.
pub(crate) fn messages(mut data: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_of(data)? as usize;
        let message = data.get(..length).filter(|m| m.len() >= HEADER)?;
        data = data.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message {
            kind: u16_of(&message[4..])?,
            flags: u16_of(&message[6..])?,
            sequence: u32_of(&message[8..])?,
            body: &message[HEADER..],
        })
    })
}

/// Attributes one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes inside an attribute.
    pub(crate) fn inside(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    /// Value of the first attribute of this type.
    pub(crate) fn get(mut self, wanted: u16) -> Option<&'a [u8]> {
        self.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_of(self.rest)?);
        let kind = u16_of(self.rest.get(2..)?)? & TYPE_MASK;
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// The 32-bit integer at the beginning.
pub(crate) fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// The 64-bit integer at the beginning.
pub(crate) fn u64_of(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|b| u64::from_ne_bytes(*b))
}

/// The text up to its terminating zero.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let one = Request::new(16, 0x100, &[1, 2, 3, 4])
            .attribute(3, b"eth0\0")
            .nested(18, &[(1, b"veth\0")])
            .finish(7);
        let mut data = one.clone();
        data.extend_from_slice(&Request::new(3, 0, &(-22i32).to_ne_bytes()).finish(8));
        let found: Vec<_> = messages(&data).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].sequence, found[0].flags), (16, 7, 0x101));
        let attributes = found[0].attributes(4);
        assert_eq!(attributes.get(3).map(text_of).as_deref(), Some("eth0"));
        let kind = Attributes::inside(attributes.get(18).unwrap()).get(1).map(text_of);
        assert_eq!(kind.as_deref(), Some("veth"));
        assert_eq!((found[1].sequence, found[1].code()), (8, -22));
    }

    #[test]
    fn any_bytes_are_read_without_panic_and_to_an_end() {
        let good = Request::new(16, 0, &[0; 16]).attribute(3, b"x\0").finish(1);
        for cut in 0..good.len() {
            messages(&good[..cut]).for_each(|m| m.attributes(16).for_each(drop));
        }
        for length in [0u8, 1, 3, 4, 15, 16, 17, 255] {
            let mut bad = good.clone();
            bad[0] = length;
            assert!(messages(&bad).count() <= 1);
            let mut bad = good.clone();
            bad[32] = length;
            messages(&bad).for_each(|m| assert!(m.attributes(16).count() <= 1));
        }
    }
}
