//! Who hosts which VM, in which multicast groups, in which order.
