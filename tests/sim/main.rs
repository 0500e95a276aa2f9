//! Sessions paired on a simulated network under faults. Each test runs several seeds; a failing one prints its seed.

mod attack;
mod fairness;
mod faults;
mod forged;
mod handover;
mod isolation;
mod judges;
mod paging;
mod residents;
mod transfers;
mod world;
