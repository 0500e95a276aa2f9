//! Merges, encodes, multicasts and repairs the pages of many VMs.
//!
//! A page's way: [`prepare`] reads and merges it into a segment, [`encode`] puts it into a block, [`session`]
//! decides when the block's symbols go where and what is repaired how, [`driver`] seals and sends them, each in
//! batches. The session knows no I/O and no clock.
//!
//! What hosts hold already ([`residents`]) is named to them and not sent.
//!
//! VMs may be started at their hosts while their memory arrives ([`guests`]): pages that they wait for are answered by
//! [`page_service`], ahead of everything else.
//!
//! Entry types: [`prepare::Prepared`], then [`driver::Transfer`]; [`session::Session`] for a simulation.

#![forbid(unsafe_code)]

pub mod departure;
pub mod driver;
pub mod encode;
pub mod guests;
pub mod handover;
pub mod measure;
pub mod page_service;
pub mod prepare;
pub mod rate;
pub mod residents;
pub mod session;
pub mod window;
