//! No VM is left waiting in silence: it is ended, with a reason that names it.

use crate::support::{PATIENCE, attach, check, image, memory, place, reporting, uffd_or_skip};
use pages::PAGE_SIZE;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use vmm::lazy::Origin;
use vmm::uffd::{Attachment, Backing, Guard, PageServer, PidFd, Region, Uffd, UffdError, VmStatus, Watchdog};

#[test]
fn a_vm_whose_page_is_lost_is_ended_and_others_go_on() {
    if !uffd_or_skip("a_vm_whose_page_is_lost_is_ended_and_others_go_on") {
        return;
    }
    let image = image(100);
    place(&image, 0..50, Origin::Block);
    let server = PageServer::start().expect("starts");
    let [waits, works, later] = [(); 3].map(|()| attach(&server, &image, Backing::Anonymous, |_| {}));
    let touch = |guest: &crate::support::Guest, page: usize| {
        let memory = guest.memory.clone();
        std::thread::spawn(move || memory.read_page(page, &mut [0; PAGE_SIZE]))
    };
    let toucher = touch(&waits, 70);
    check(&works.memory, 0..50);
    assert!(waits.ended.try_recv().is_err(), "nothing is lost yet");
    while image.stats().demanded == 0 {
        std::thread::yield_now();
    }
    image.lose("the sender is gone");
    let reason = waits.ended.recv_timeout(PATIENCE).expect("ended");
    assert!(
        reason.contains("test") && reason.contains("page 70") && reason.contains("the sender is gone"),
        "{reason}"
    );
    assert_eq!(waits.served.wait(PATIENCE), VmStatus::Ended(reason));
    toucher.join().expect("it wakes up, to be ended");
    check(&works.memory, 0..50);
    assert_eq!(works.served.status(), VmStatus::Serving);
    // A page that comes all the same, as from a peer, is served.
    place(&image, 50..60, Origin::Peer);
    check(&works.memory, 50..60);
    touch(&later, 99).join().expect("wakes up");
    assert!(later.ended.recv_timeout(PATIENCE).expect("ended").contains("page 99"));
}

#[test]
fn a_server_that_ends_ends_its_vms() {
    if !uffd_or_skip("a_server_that_ends_ends_its_vms") {
        return;
    }
    let (unfinished, finished) = (image(100), image(100));
    place(&finished, 0..100, Origin::Block);
    let server = PageServer::start().expect("starts");
    let ended = attach(&server, &unfinished, Backing::PrivateView, |_| {});
    let complete = attach(&server, &finished, Backing::PrivateView, |_| {});
    assert_eq!(complete.served.wait(PATIENCE), VmStatus::Complete);
    drop(server);
    let reason = ended.ended.recv_timeout(PATIENCE).expect("ended");
    assert!(reason.contains("page server was ended"), "{reason}");
    assert!(complete.ended.try_recv().is_err(), "it depends on nobody");
    check(&complete.memory, 0..100);
}

#[test]
fn what_does_not_fit_is_refused_and_ended() {
    if !uffd_or_skip("what_does_not_fit_is_refused_and_ended") {
        return;
    }
    let image = image(100);
    let server = PageServer::start().expect("starts");
    let memory = memory(&image, Backing::Anonymous);
    let whole = Region::whole(&memory);
    let wrong = [
        Region { len: whole.len + 4096, ..whole },
        Region { image_offset: 4096, ..whole },
        Region { image_offset: u64::MAX - 4095, ..whole },
        Region { address: whole.address + 1, ..whole },
        Region { address: u64::MAX - 4095, ..whole },
        Region { page_bytes: 0, ..whole },
        Region { page_bytes: 2 << 20, ..whole },
        Region { len: 0, ..whole },
    ];
    for regions in wrong.map(|region| vec![region]).into_iter().chain([vec![], vec![whole; 65]]) {
        let uffd = Uffd::for_memory(&memory, Backing::Anonymous).expect("registered");
        let (guard, ended) = reporting();
        let attachment =
            Attachment::new("odd", uffd, image.clone(), regions.clone(), Backing::Anonymous, guard);
        let error = server.attach(attachment).expect_err("refused");
        assert!(
            matches!(error, UffdError::Region { .. } | UffdError::TooMany { .. }),
            "{regions:?}: {error}"
        );
        ended.recv_timeout(PATIENCE).expect("ended");
    }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().expect("sleep starts")
}

#[test]
fn a_process_is_killed_when_its_pages_are_lost_and_noticed_when_it_ends() {
    if !uffd_or_skip("a_process_is_killed_when_its_pages_are_lost_and_noticed_when_it_ends") {
        return;
    }
    let image = image(10);
    let server = PageServer::start().expect("starts");
    // The process stands for the VMM; the memory is this one's, which makes no difference to the server.
    let attach = |child: &Child| {
        let memory = Arc::new(memory(&image, Backing::Anonymous));
        let uffd = Uffd::for_memory(&memory, Backing::Anonymous).expect("registered");
        let guard = Guard::Process(PidFd::of(child.id()).expect("it runs"));
        let regions = vec![Region::whole(&memory)];
        let attachment = Attachment::new("vmm", uffd, image.clone(), regions, Backing::Anonymous, guard);
        (memory, server.attach(attachment).expect("attached"))
    };
    let (mut doomed, mut leaving) = (sleeper(), sleeper());
    let (memory, served) = attach(&doomed);
    let (_memory, left) = attach(&leaving);
    leaving.kill().expect("ours");
    leaving.wait().expect("ours");
    assert_eq!(left.wait(PATIENCE), VmStatus::Gone);
    let toucher = std::thread::spawn(move || memory.read_page(3, &mut [0; PAGE_SIZE]));
    while image.stats().demanded == 0 {
        std::thread::yield_now();
    }
    image.lose("every source is gone");
    let status = doomed.wait().expect("ours");
    assert!(!status.success(), "killed: {status}");
    assert!(
        matches!(served.wait(PATIENCE), VmStatus::Ended(reason) if reason.contains("every source is gone"))
    );
    toucher.join().expect("wakes up");
}

/// Set for the handler's process in the next test: the number of the process that it guards.
const HANDLER_OF: &str = "VMM_TEST_HANDLER_OF";

/// The handler's process: holds a watchdog over another process, says so, and sleeps until it is killed.
fn be_handler(vmm: &str) -> ! {
    let watchdog = Watchdog::start().expect("starts");
    let process = PidFd::of(vmm.parse().expect("a number")).expect("it runs");
    // One is guarded, another is guarded no longer.
    let released = watchdog.guard(&process).expect("guarded");
    watchdog.release(released).expect("released");
    watchdog.guard(&process).expect("guarded");
    eprintln!("guarding");
    std::thread::sleep(PATIENCE);
    panic!("nobody killed it");
}

#[test]
fn a_killed_handler_takes_its_vmm_with_it() {
    if let Ok(vmm) = std::env::var(HANDLER_OF) {
        be_handler(&vmm);
    }
    let (mut vmm, mut bystander) = (sleeper(), sleeper());
    let mut handler = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "ends::a_killed_handler_takes_its_vmm_with_it", "--nocapture"])
        .env(HANDLER_OF, vmm.id().to_string())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    let said = handler.stderr.take().expect("piped");
    let line = BufReader::new(said).lines().map_while(Result::ok).find(|line| line.contains("guarding"));
    assert!(line.is_some(), "it does not guard");
    assert_eq!(vmm.try_wait().expect("ours"), None, "it runs while its handler does");
    handler.kill().expect("ours");
    handler.wait().expect("ours");
    let status = vmm.wait().expect("ours");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    assert_eq!(bystander.try_wait().expect("ours"), None, "it was not guarded");
    bystander.kill().expect("ours");
    bystander.wait().expect("ours");
}

#[test]
fn a_watchdog_that_is_dropped_lets_them_live() {
    let mut vmm = sleeper();
    let watchdog = Watchdog::start().expect("starts");
    watchdog.guard(&PidFd::of(vmm.id()).expect("it runs")).expect("guarded");
    drop(watchdog);
    assert_eq!(vmm.try_wait().expect("ours"), None);
    vmm.kill().expect("ours");
    vmm.wait().expect("ours");
}
