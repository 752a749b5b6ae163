//! The event ring: records as the kernel wrote them, what can't be read counted.

use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{Map as AyaMap, MapData, RingBuf};
use policy_common::event::Event;

use super::error::{Error, Result};
use super::map::Map;
use super::spec::MapId;

/// The reading end. One per agent: the position of the reader is kept in the map.
pub struct EventRing {
    ring: RingBuf<MapData>,
    unreadable: u64,
}

impl EventRing {
    pub(super) fn new(map: &Map) -> Result<Self> {
        let failed = |e: aya::maps::MapError| Error::Map {
            action: "read from",
            map: MapId::Events.spec().name,
            source: std::io::Error::other(e),
        };
        let data = MapData::from_fd(map.try_clone_fd()?).map_err(failed)?;
        let map = AyaMap::from_map_data(data).map_err(failed)?;
        Ok(Self { ring: RingBuf::try_from(map).map_err(failed)?, unreadable: 0 })
    }

    /// The next record, if one waits. Wait for readability of the descriptor, then call until `None`; also call now
    /// and then without it, because the kernel wakes readers only for some records.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let record = self.ring.next()?;
            match Event::decode(&record) {
                Some(event) => return Some(event),
                None => self.unreadable += 1,
            }
        }
    }

    /// Records that this build could not read.
    #[must_use]
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }
}

impl std::fmt::Debug for EventRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventRing").field("unreadable", &self.unreadable).finish_non_exhaustive()
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
