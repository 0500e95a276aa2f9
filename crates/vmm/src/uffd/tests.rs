//! What only this module can bring about: a page server with a defect.

use super::{Attachment, Backing, Guard, PageServer, Region, Uffd, UffdError};
use crate::lazy::LazyImage;
use crate::memory::GuestMemory;
use pages::PAGE_SIZE;
use std::sync::{Arc, mpsc};
use std::time::Duration;

#[test]
fn a_server_that_panics_ends_its_vms() {
    let image = Arc::new(LazyImage::memfd("test", 10).expect("a memfd"));
    let memory = GuestMemory::anonymous(10 * PAGE_SIZE).expect("mapped");
    let uffd = match Uffd::for_memory(&memory, Backing::Anonymous) {
        Err(error @ UffdError::Unavailable(_)) => {
            assert!(std::env::var_os("SCATTER_REQUIRE_LAB").is_none(), "{error}");
            println!("skipped: {error}");
            return;
        }
        uffd => uffd.expect("registered"),
    };
    let server = PageServer::start().expect("starts");
    let (report, ended) = mpsc::channel();
    let guard = Guard::Hook(Box::new(move |reason| report.send(reason.to_owned()).expect("heard")));
    let regions = vec![Region::whole(&memory)];
    let attachment = Attachment::new("unlucky", uffd, image, regions, Backing::Anonymous, guard);
    let _served = server.attach(attachment).expect("attached");
    server.panic();
    let reason = ended.recv_timeout(Duration::from_secs(60)).expect("ended");
    assert!(reason.contains("unlucky") && reason.contains("panicked"), "{reason}");
    // Whoever waits wakes up, and nothing more is taken.
    memory.read_page(3, &mut [0; PAGE_SIZE]);
}
