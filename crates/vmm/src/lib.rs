//! Where virtual machines' memory comes from: a module for each kind of source.
//!
//! Now: [`image`], files that hold a VM's memory. [`image::MappedImage::open`] maps one and hands out its
//! pages as a [`pages::PageSource`].
//!
//! [`lazy`] is the memory of a VM that is still arriving: what page servers serve from and hypervisors start on.
//!
//! Not here: what pages have in common (crate `pages`), writing received files (crate `receiver`), running
//! hypervisors. `unsafe` stands here for mapped memory only.

pub mod image;
pub mod lazy;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod microvm;
pub mod qemu;

pub use image::{ImageError, ImageFormat, ImageInfo, MappedImage, RamBlock};
pub use lazy::LazyImage;
