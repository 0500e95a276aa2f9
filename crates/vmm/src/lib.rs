//! Hypervisor adapters: image files.
