//! Where virtual machines' memory comes from: a module for each kind of source.
//!
//! Now: [`image`], files that hold a VM's memory. [`image::MappedImage::open`] maps one and hands out its
//! pages as a [`pages::PageSource`].
//!
//! [`lazy`] is the memory of a VM that is still arriving: what page servers serve from and hypervisors start on.
//!
//! [`firecracker`] and [`cloud_hypervisor`] take running VMs and start clones of them. [`uffd`] answers the page faults of VMs from it. [`microvm`] is a small VMM with a guest that checks its memory, for tests
//! and the demo.
//!
//! Not here: what pages have in common (crate `pages`), writing received files (crate `receiver`). `unsafe` stands here for
//! mapped memory and the kernel's interfaces to it only.

#[cfg(target_os = "linux")]
pub mod cloud_hypervisor;
#[cfg(target_os = "linux")]
pub mod firecracker;
#[cfg(target_os = "linux")]
mod http;
pub mod image;
pub mod lazy;
pub mod memory;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod microvm;
pub mod qemu;
#[cfg(target_os = "linux")]
pub mod uffd;

pub use image::{ImageError, ImageFormat, ImageInfo, MappedImage, RamBlock};
pub use lazy::LazyImage;
