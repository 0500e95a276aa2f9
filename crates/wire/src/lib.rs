//! Bytes on the network: datagram and control codecs, sealing, limits.
