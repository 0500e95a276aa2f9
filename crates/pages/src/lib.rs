//! Page identity: which pages of many VMs hold the same bytes, and how a block of them is written down.
//!
//! The way through this crate, in the order that a page takes it:
//!
//! 1. [`PageSource`]: an image, read page by page where it lies (mapped memory, never copied).
//! 2. [`merge()`]: uniform pages are found first ([`uniform_word`]), the others are hashed with XXH3-128,
//!    compared byte by byte and merged. The result is a [`MergeIndex`]: *contents*, each with its
//!    *placements* and its *signature* (the exact set of VMs that hold it).
//! 3. [`block`]: contents with their placements become a self-contained block body and back.
//! 4. [`measure`]: what VMs of several hosts have in common, told by keyed hashes alone, for planning.
//! 5. [`names`]: what stands for a content where its bytes cannot be compared.
//! 6. [`Bitmap`]: which pages are there already.
//!
//! Not here: files and mappings (crate `vmm`), sealing and datagrams (crate `wire`), the order in which
//! contents are sent (crate `sender`). This crate knows no I/O and no clock; it asks the system for
//! threads, and for a random key once hash collisions show up.

#![forbid(unsafe_code)]

pub mod bitmap;
pub mod block;
pub mod ids;
pub mod measure;
pub mod merge;
pub mod names;
mod page;
mod uniform;

pub use bitmap::{Bitmap, BitmapError};
pub use ids::IdSet;
pub use merge::{
    ClassCount, ClassCounts, ContentId, MergeIndex, MergeInput, PageIdentity, SignatureId, merge,
};
pub use page::{PAGE_SIZE, Page, PageSource, Pfn, UniformRun, VmId};
pub use uniform::uniform_word;
