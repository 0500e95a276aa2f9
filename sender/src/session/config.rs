//! What bounds and times a session.

use crate::rate::RateConfig;
use std::time::Duration;

/// What bounds and times a session.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Largest symbol in bytes.
    pub symbol_size_max: u16,
    /// Fixed or automatic rate.
    pub rate: RateConfig,
    /// Bytes of encoded blocks kept until the hosts on their group have them.
    pub window_bytes: u64,
    /// Largest burst handed out at once, in bytes of datagrams.
    pub burst_bytes: usize,
    /// A host is asked what it misses at least this often while data flows.
    pub through_interval: Duration,
    /// How long a block's first deficit waits for those of other hosts.
    pub repair_holdoff: Duration,
    /// A host that does not answer for so long is not waited for until it does.
    pub lag_limit: Duration,
    /// A host that says nothing for so long, or gets nothing done of what is under way to it, has failed.
    pub host_timeout: Duration,
    /// A host that has all blocks and does not report its images complete for so long has failed: it syncs them then.
    pub finish_timeout: Duration,
    /// Over so long …
    pub useful_window: Duration,
    /// … a host must take so many bytes per second of what waits for it (less if the session's rate is low).
    pub useful_bytes_per_s: u64,
    /// A host that connects so often without getting further has failed.
    pub connections_max: u32,
    /// From the last host's `Joined` until the network surely forwards the group.
    pub join_latency: Duration,
    /// A channel is opened so long before its data are expected.
    pub prejoin: Duration,
    /// Hosts that cannot be reached at first are given so long to appear before the others start …
    pub start_grace: Duration,
    /// … and hosts of which nothing at all is heard, so long.
    pub start_wait_max: Duration,
    /// Groups that a host may be a member of at once.
    pub memberships_max: usize,
    /// Bytes under way on control channels as catch-up, shared by the hosts that owe any; each has at least one block.
    pub catch_up_bytes: u64,
}

impl SessionConfig {
    /// The usual figures, for the given symbol size and rate.
    #[must_use]
    pub fn new(symbol_size_max: u16, rate: RateConfig) -> Self {
        Self {
            symbol_size_max,
            rate,
            window_bytes: 64 << 20,
            burst_bytes: 64_000,
            through_interval: Duration::from_millis(10),
            repair_holdoff: Duration::from_millis(10),
            lag_limit: Duration::from_millis(250),
            host_timeout: Duration::from_secs(20),
            finish_timeout: Duration::from_secs(120),
            useful_window: Duration::from_secs(60),
            useful_bytes_per_s: 32 << 10,
            connections_max: 16,
            join_latency: Duration::from_millis(25),
            prejoin: Duration::from_millis(60),
            start_grace: Duration::from_millis(500),
            start_wait_max: Duration::from_secs(5),
            memberships_max: 20,
            catch_up_bytes: 4 << 20,
        }
    }
}
