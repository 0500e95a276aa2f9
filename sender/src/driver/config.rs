//! What a transfer is told, and why it may not run at all.

use super::HostTarget;
use crate::encode::EncodePlan;
use crate::guests::GuestInput;
use crate::session::SessionConfig;
use net::interface::Interface;
use net::pki::Identity;
use net::udp::SenderOptions;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A channel of the schedule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScheduledChannel {
    /// The group; `None` for the unicast channel of one host.
    pub group: Option<IpAddr>,
    /// Indexes of its hosts, ascending.
    pub hosts: Vec<usize>,
}

/// A segment of the schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScheduledSegment {
    /// Index in [`Prepared::segments`]. A segment sent to several hosts by unicast stands here once for each.
    pub segment: usize,
    /// Index of the channel.
    pub channel: usize,
}

/// What is sent where, in which order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    /// Channels, in any order.
    pub channels: Vec<ScheduledChannel>,
    /// Segments, in the order of sending.
    pub segments: Vec<ScheduledSegment>,
    /// So many of them go out before clones run: recorded working sets.
    pub first: usize,
}

impl Schedule {
    /// Index of a host's own channel.
    pub(super) fn unicast_channel(&self, host: usize) -> Option<usize> {
        self.channels.iter().position(|channel| channel.group.is_none() && channel.hosts[0] == host)
    }

    /// Puts parts of segments before everything else, as [`Prepared::put_first`](crate::prepare::Prepared::put_first) made them.
    pub fn put_first(&mut self, parts: &[(usize, usize)]) {
        let first = |of: &ScheduledSegment| {
            let (_, part) = parts.iter().find(|(segment, _)| *segment == of.segment)?;
            Some(ScheduledSegment { segment: *part, ..*of })
        };
        let parts: Vec<ScheduledSegment> = self.segments.iter().filter_map(first).collect();
        self.first += parts.len();
        self.segments.splice(0..0, parts);
    }
}

/// Everything about a transfer but the pages.
#[derive(Clone)]
pub struct TransferConfig {
    /// The plan's name; a later transfer of the same name resumes.
    pub name: String,
    /// The hosts; indexes elsewhere are into this list.
    pub hosts: Vec<HostTarget>,
    /// This sender's certificate and key, and the fleet's CA.
    pub identity: Arc<Identity>,
    /// Where datagrams leave.
    pub interface: Interface,
    /// Time to live and socket options.
    pub options: SenderOptions,
    /// UDP port of the groups.
    pub multicast_port: u16,
    /// The groups are IPv6's.
    pub ipv6: bool,
    /// Bounds and times.
    pub session: SessionConfig,
    /// Encoding and block size.
    pub encode: EncodePlan,
    /// Threads that encode.
    pub threads: usize,
    /// Pages that guests wait for come by the group where several of its hosts lack them: see [`crate::session::Session::hasten`].
    pub shared_faults: bool,
    /// VMs that are started at their hosts while their memory arrives; see [`crate::guests::check`].
    pub guests: Vec<GuestInput>,
}

/// A transfer could not be run at all. Failures of single hosts are in [`Outcome`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A socket could not be made.
    #[error("cannot make the data socket")]
    Udp(#[source] net::udp::UdpError),
    /// The system cannot start what is needed.
    #[error("cannot start the control connections")]
    Start(#[source] std::io::Error),
    /// Sending failed, and not for a full buffer.
    #[error("cannot send to {dest}")]
    Send {
        /// Group or host.
        dest: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A block outside the code's limits.
    #[error("cannot encode a block for repair")]
    Fec(#[source] fec::FecError),
}
