//! Collects, verifies and places blocks into the images of the VMs of a host.
