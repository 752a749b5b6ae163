//! The tc requests of the clsact fallback, by interface index: qdisc, filters, and who is there already.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{Attributes, Message, Request, text_of, u32_of};
use super::socket::Requests;

/// Bytes of the fixed part of a tc message.
const FIXED: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// Parent of a clsact qdisc, which is also its handle's major number.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// Side of a clsact qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Packets that arrive at the interface.
    Ingress,
    /// Packets that leave by the interface.
    Egress,
}

impl Parent {
    fn number(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A filter as a dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// 1 runs first.
    pub(crate) priority: u16,
    /// Unique at its priority.
    pub(crate) handle: u32,
    /// `bpf`, `flower` and so on.
    pub(crate) kind: String,
    /// Name that its owner gave it; empty when it has none.
    pub(crate) name: String,
    /// Id of its program, 0 when it is none.
    pub(crate) program: u32,
}

/// tc requests in one network namespace.
#[derive(Debug)]
pub(crate) struct Tc {
    requests: Requests,
}

impl Tc {
    /// Opens its socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { requests: Requests::open()? })
    }

    /// Adds a clsact qdisc. `AlreadyExists` when there is one, or an `ingress` qdisc, which takes the same place.
    pub(crate) fn add_clsact(&self, ifindex: u32) -> io::Result<()> {
        let flags = (libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.requests.ask(
            Request::new(libc::RTM_NEWQDISC, flags, &fixed(ifindex, CLSACT_HANDLE, CLSACT, 0))
                .attribute(TCA_KIND, b"clsact\0"),
        )
    }

    /// Removes the clsact qdisc with all its filters.
    pub(crate) fn remove_clsact(&self, ifindex: u32) -> io::Result<()> {
        let fixed = fixed(ifindex, CLSACT_HANDLE, CLSACT, 0);
        self.requests.ask(Request::new(libc::RTM_DELQDISC, libc::NLM_F_ACK as u16, &fixed))
    }

    /// Kind of the qdisc in the clsact's place, if there is one.
    pub(crate) fn qdisc(&self, ifindex: u32) -> io::Result<Option<String>> {
        let request = Request::new(libc::RTM_GETQDISC, libc::NLM_F_DUMP as u16, &fixed(ifindex, 0, 0, 0));
        let found = self.requests.dump(&request, |message| {
            // Kernels ignore the index in this dump.
            let ours = message.u32_at(4) == Some(ifindex) && message.u32_at(12) == Some(CLSACT);
            message.attributes(FIXED).get(TCA_KIND).filter(|_| ours).map(text_of)
        })?;
        Ok(found.into_iter().next())
    }

    /// Puts a program behind a filter: a new one, or in the place of the program that it has.
    ///
    /// A new one fails with `AlreadyExists`, a replacement with `NotFound`.
    pub(crate) fn set_filter(
        &self,
        ifindex: u32,
        parent: Parent,
        filter: &Filter,
        program: BorrowedFd<'_>,
        new: bool,
    ) -> io::Result<()> {
        let create = if new { libc::NLM_F_CREATE | libc::NLM_F_EXCL } else { 0 };
        let flags = (libc::NLM_F_ACK | create) as u16;
        let mut name = filter.name.clone().into_bytes();
        name.push(0);
        self.requests.ask(
            Request::new(libc::RTM_NEWTFILTER, flags, &filter_fixed(ifindex, parent, filter))
                .attribute(TCA_KIND, b"bpf\0")
                .nested(
                    TCA_OPTIONS,
                    &[
                        (TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes()),
                        (TCA_BPF_NAME, &name),
                        (TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
                    ],
                ),
        )
    }

    /// Removes one filter.
    pub(crate) fn remove_filter(&self, ifindex: u32, parent: Parent, filter: &Filter) -> io::Result<()> {
        let fixed = filter_fixed(ifindex, parent, filter);
        self.requests.ask(
            Request::new(libc::RTM_DELTFILTER, libc::NLM_F_ACK as u16, &fixed).attribute(TCA_KIND, b"bpf\0"),
        )
    }

    /// Filters of one side in the order in which they run. Empty when there is no clsact qdisc.
    pub(crate) fn filters(&self, ifindex: u32, parent: Parent) -> io::Result<Vec<Filter>> {
        let fixed = fixed(ifindex, 0, parent.number(), 0);
        let request = Request::new(libc::RTM_GETTFILTER, libc::NLM_F_DUMP as u16, &fixed);
        match self.requests.dump(&request, filter) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)) => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    /// Indexes of all links of the namespace.
    pub(crate) fn interfaces(&self) -> io::Result<Vec<u32>> {
        let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_DUMP as u16, &[0; 16]);
        self.requests.dump(&request, |message| message.u32_at(4))
    }
}

fn fixed(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    for (position, value) in [ifindex, handle, parent, info].into_iter().enumerate() {
        bytes[4 + position * 4..8 + position * 4].copy_from_slice(&value.to_ne_bytes());
    }
    bytes
}

/// All protocols, in network order as the kernel wants it here.
fn filter_fixed(ifindex: u32, parent: Parent, filter: &Filter) -> [u8; FIXED] {
    let all = u32::from((libc::ETH_P_ALL as u16).to_be());
    fixed(ifindex, filter.handle, parent.number(), u32::from(filter.priority) << 16 | all)
}

fn filter(message: &Message<'_>) -> Option<Filter> {
    let handle = message.u32_at(8)?;
    // Each chain of filters is announced by a message without a handle.
    if message.kind != libc::RTM_NEWTFILTER || handle == 0 {
        return None;
    }
    let attributes = message.attributes(FIXED);
    let options = Attributes::inside(attributes.get(TCA_OPTIONS).unwrap_or(&[]));
    Some(Filter {
        priority: (message.u32_at(16)? >> 16) as u16,
        handle,
        kind: attributes.get(TCA_KIND).map(text_of).unwrap_or_default(),
        name: options.get(TCA_BPF_NAME).map(text_of).unwrap_or_default(),
        program: options.get(TCA_BPF_ID).and_then(u32_of).unwrap_or(0),
    })
}
