//! Sockets: batched multicast I/O, the TLS control channel, interface discovery, the fleet's certificates, and
//! the checks that say before a transfer what would make it fail in silence.
//!
//! - [`udp`]: [`udp::UdpSender`] and [`udp::UdpReceiver`], many datagrams a system call.
//! - [`interface`]: [`interface::Interface`], named by the user or found.
//! - [`control`]: [`control::connect`] and [`control::Listener`], frames over TLS 1.3 with certificates at both
//!   ends.
//! - [`pki`]: [`pki::create_ca`], [`pki::issue_host`], [`pki::Identity`].
//! - [`doctor`]: what is wrong with this host and its network.
//!
//! What the datagrams and frames say is not known here (crate `wire`), nor when to send them (`sender`,
//! `receiver`). Linux only.

pub mod control;
pub mod doctor;
pub mod interface;
pub mod pki;
mod sys;
mod time;
pub mod udp;

pub use interface::{Interface, InterfaceError};
