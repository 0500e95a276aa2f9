//! Tests that need real network namespaces. Without them each prints why it was skipped.

mod hosts;
mod life;
mod peers;
