//! The page server, with threads as faulting clients: needs userfaultfd, but no KVM.

mod ends;
mod faults;
mod support;
