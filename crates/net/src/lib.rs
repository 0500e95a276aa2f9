//! Sockets: batched multicast I/O, the TLS control channel, interface discovery, IGMP.
