//! Event records: what is read is written back as it was, and nothing else is read.

use policy_common::{
    event::{EVENT_SIZE, Event},
    reason::Reason,
};

pub(super) fn run(input: &[u8]) {
    match Event::decode(input) {
        Some(event) => {
            assert_eq!(event.encode().as_slice(), input, "written back");
            assert!(matches!(event.direction, 1 | 2), "a direction of this build");
            assert_eq!(event.reason() as u8, event.reason, "a reason of this build");
            assert_eq!(event.direction() as u8, event.direction);
        }
        None => {
            let known = input.len() == EVENT_SIZE && {
                let event = Event::default().encode();
                // Where direction and reason stand, found by writing them.
                let at = |change: &dyn Fn(&mut Event)| {
                    let mut other = Event::default();
                    change(&mut other);
                    other.encode().iter().zip(&event).position(|(a, b)| a != b).unwrap_or_default()
                };
                let (direction, reason) = (at(&|event| event.direction = 1), at(&|event| event.reason = 1));
                matches!(input[direction], 1 | 2) && Reason::from_number(input[reason]).is_some()
            };
            assert!(!known, "a record of this build is refused");
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut event = Event { direction: 1, reason: 1, family: 4, protocol: 6, slot: 3, ..Event::default() };
    let first = event.encode().to_vec();
    (event.direction, event.family, event.source) = (2, 6, [1, 2, 3, 4]);
    vec![first, event.encode().to_vec(), Vec::new()]
}
