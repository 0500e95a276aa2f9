//! Every decoder against its corpus and against a deterministic flood of mutations; whole sessions against captured
//! traffic that was tampered with. What libFuzzer searches for hours (`docs/fuzzing.md`) is held here on each `cargo test`.

mod decoders;
mod mutate;
mod seeds;
mod sessions;
#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "public for the fuzz crate, which is the other user of these files")]
mod targets;
mod world;
