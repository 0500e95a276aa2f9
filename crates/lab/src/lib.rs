//! Test hosts: network namespaces on a snooping bridge, and a seeded, simulated network.
