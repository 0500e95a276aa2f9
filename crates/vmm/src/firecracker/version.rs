//! Which Firecracker can load what: its versions, and which CPU a snapshot needs.

use std::cmp::Ordering;
use std::fmt;

/// A Firecracker version, as `1.16.1` or `1.17.0-dev`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    numbers: [u32; 3],
    text: String,
}

impl Version {
    /// `network_overrides` of `/snapshot/load`.
    pub(super) const NETWORK_OVERRIDES: [u32; 3] = [1, 12, 0];
    /// `vsock_override`.
    pub(super) const VSOCK_OVERRIDE: [u32; 3] = [1, 16, 0];
    /// `track_dirty_pages`; before, the same was called `enable_diff_snapshots`.
    pub(super) const TRACK_DIRTY_PAGES: [u32; 3] = [1, 13, 0];
    /// The page-fault handler as a backend of memory.
    pub(super) const UFFD: [u32; 3] = [1, 1, 0];
    /// From here on a balloon's pages are told to the handler as removed (firecracker#5021).
    pub(super) const REMOVE_EVENTS: [u32; 3] = [1, 11, 0];

    /// Reads a version's text, with or without the `v` and with whatever follows the numbers.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut parts = text[..end].split('.').map(|part| part.parse::<u32>().ok());
        let numbers = [parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)];
        Some(Self { numbers, text: text.to_owned() })
    }

    /// Whether it is this version or a later one.
    pub(super) fn since(&self, numbers: [u32; 3]) -> bool {
        self.numbers.cmp(&numbers) != Ordering::Less
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a snapshot can be restored by, compared before anything is sent: the very version (its state's format changes
/// even with patch releases) and the CPU's model.
#[must_use]
pub fn fingerprint(version: &Version) -> String {
    format!("firecracker {version}; cpu {}", cpu_model())
}

/// The model's name as the kernel tells it.
fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let version = |text| Version::parse(text).expect("a version");
        assert!(version("1.12.0").since(Version::NETWORK_OVERRIDES));
        assert!(!version("v1.9.1").since(Version::NETWORK_OVERRIDES));
        assert!(version("1.16.0-dev").since(Version::VSOCK_OVERRIDE));
        assert!(version("2.0").since(Version::VSOCK_OVERRIDE));
        assert_eq!(version("v1.17.0-dev").to_string(), "1.17.0-dev");
        for odd in ["", "1", "one.two", "1.x"] {
            assert_eq!(Version::parse(odd), None, "{odd}");
        }
        assert_ne!(fingerprint(&version("1.16.0")), fingerprint(&version("1.16.1")));
    }
}
