//! Running VMs: the micro-VM's guest checks its memory, with a real vCPU. Needs /dev/kvm.

mod balloon;
mod cloud_hypervisor;
mod firecracker;
mod microvm;
mod postcopy;
mod support;
