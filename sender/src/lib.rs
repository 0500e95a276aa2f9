//! Merges, encodes, multicasts and repairs the pages of many VMs.
