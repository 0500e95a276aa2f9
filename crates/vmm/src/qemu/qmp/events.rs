//! What a monitor tells by itself, until somebody asks for it.

use serde_json::Value;
use std::collections::VecDeque;
use std::time::Duration;

/// Events that are kept; the oldest go first, but for [`LASTING`] ones.
const KEPT_MAX: usize = 1024;
/// Events that no number of others displaces: whoever watches a VM that stands relies on finding them.
const LASTING: [&str; 3] = ["STOP", "RESUME", "RESET"];

/// Something that happened to the VM.
#[derive(Clone, PartialEq, Debug)]
pub struct QmpEvent {
    /// As `STOP`, `RESUME`, `MIGRATION`.
    pub name: String,
    /// What belongs to it; null if nothing does.
    pub data: Value,
    /// When, by QEMU's clock, since 1970.
    pub at: Duration,
}

/// Events that nobody has asked for yet, oldest first.
#[derive(Debug, Default)]
pub(super) struct Events(VecDeque<QmpEvent>);

impl Events {
    /// Takes in a line that has one.
    pub(super) fn keep(&mut self, line: &Value) {
        if self.0.len() == KEPT_MAX {
            self.displace();
        }
        let stamp = |field: &str| line["timestamp"][field].as_u64().unwrap_or(0);
        self.0.push_back(QmpEvent {
            name: line["event"].as_str().unwrap_or_default().to_owned(),
            data: line["data"].clone(),
            at: Duration::from_secs(stamp("seconds")) + Duration::from_micros(stamp("microseconds")),
        });
    }

    fn displace(&mut self) {
        let passing = self.0.iter().position(|event| !LASTING.contains(&event.name.as_str()));
        // If all are lasting ones, one goes that came again later, so that each name stays.
        let repeated = || {
            let again = |of: usize| self.0.iter().skip(of + 1).any(|event| event.name == self.0[of].name);
            (0..self.0.len()).find(|of| again(*of))
        };
        let displaced = passing.or_else(repeated).expect("fewer names last than events are kept");
        self.0.remove(displaced);
    }

    pub(super) fn pop(&mut self) -> Option<QmpEvent> {
        self.0.pop_front()
    }

    pub(super) fn take(&mut self) -> Vec<QmpEvent> {
        self.0.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What is kept of these.
    fn kept<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut events = Events::default();
        names.into_iter().for_each(|name| events.keep(&json!({ "event": name })));
        events.take().into_iter().map(|event| event.name).collect()
    }

    #[test]
    fn no_number_of_events_hides_that_a_vm_was_set_running_or_reset() {
        let flood = ["RTC_CHANGE"; 3 * KEPT_MAX];
        let kept_of = kept(["STOP", "RESUME", "RESET"].into_iter().chain(flood));
        assert_eq!(kept_of.len(), KEPT_MAX);
        assert_eq!(kept_of[..4], ["STOP", "RESUME", "RESET", "RTC_CHANGE"]);

        // Nor do they hide each other, and they are no more than others may be.
        let flood = ["STOP", "RESUME"].into_iter().cycle().take(3 * KEPT_MAX);
        let kept_of = kept(["RESET", "RTC_CHANGE"].into_iter().chain(flood));
        assert_eq!((kept_of.len(), kept_of[0].as_str()), (KEPT_MAX, "RESET"));
        assert!(["STOP", "RESUME"].iter().all(|name| kept_of.iter().any(|of| of == name)));
    }
}
