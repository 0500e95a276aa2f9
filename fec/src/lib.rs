//! A block of bytes to and from source and repair symbols.
