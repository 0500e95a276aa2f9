use super::*;
use wire::control::PageRange;

fn service() -> PageService {
    PageService::new(vec![vec![0], vec![0, 1]], BTreeMap::from([(0, 100), (1, 10)]))
}

fn want(vm: u16, pages: &[u32], ahead: &[(u32, u32)]) -> Want {
    let ahead = ahead.iter().map(|(first, count)| PageRange { first: *first, count: *count }).collect();
    Want { vm, pages: pages.to_vec(), ahead }
}

/// Nothing comes by a group.
fn ask(service: &mut PageService, host: usize, want: &Want) -> Result<(), WantError> {
    service.handle_want(host, want, Duration::ZERO, &mut |_| false)
}

fn all(service: &mut PageService) -> Vec<(usize, u16, Vec<u32>)> {
    std::iter::from_fn(|| service.poll(&mut |_| true)).map(|a| (a.host, a.vm, a.pages)).collect()
}

#[test]
fn faults_come_before_pages_ahead_and_hosts_take_turns() {
    let mut service = service();
    ask(&mut service, 0, &want(0, &[5, 9], &[(6, 3)])).expect("has the VM");
    ask(&mut service, 1, &want(1, &[], &[(0, 2)])).expect("has the VM");
    ask(&mut service, 1, &want(1, &[1], &[])).expect("has the VM");
    assert!(service.is_urgent());
    let sent = all(&mut service);
    let expected = [(0, 0, vec![5, 9]), (1, 1, vec![1]), (0, 0, vec![6, 7, 8]), (1, 1, vec![0])];
    assert_eq!(sent, expected);
    assert!(!service.is_urgent());
}

#[test]
fn a_page_is_sent_once_on_a_connection_however_often_it_is_asked_for() {
    let mut service = service();
    for _ in 0..1000 {
        ask(&mut service, 0, &want(0, &[1, 1, 2], &[(0, 100)])).expect("has the VM");
    }
    let sent: usize = all(&mut service).iter().map(|(_, _, pages)| pages.len()).sum();
    assert_eq!(sent, 100);
    assert_eq!(service.stats().answered + service.stats().ahead, 100);
    assert!(service.stats().suppressed > 100_000);
    service.handle_connected(0);
    ask(&mut service, 0, &want(0, &[1], &[])).expect("has the VM");
    assert_eq!(all(&mut service), [(0, 0, vec![1])], "another connection");
}

#[test]
fn what_one_host_waits_for_goes_to_others_with_the_vm_once_and_after_their_own() {
    let mut service = PageService::new(vec![vec![0]; 4], BTreeMap::from([(0, 100)]));
    let wanted = want(0, &[5, 9], &[(6, 2)]);
    ask(&mut service, 0, &wanted).expect("has the VM");
    // Host 1 asked for one of them itself; host 3 is not there yet.
    ask(&mut service, 1, &want(0, &[9], &[])).expect("has the VM");
    for _ in 0..2 {
        service.share(0, &wanted, &mut |host| host != 3);
    }
    let sent = all(&mut service);
    let expected =
        [(0, 0, vec![5, 9]), (1, 0, vec![9]), (2, 0, vec![5, 9]), (0, 0, vec![6, 7]), (1, 0, vec![5])];
    assert_eq!(sent, expected);
    // What is shared is not sent again to those who ask then.
    ask(&mut service, 2, &want(0, &[5], &[])).expect("has the VM");
    assert_eq!(all(&mut service), []);
    assert_eq!((service.stats().spread, service.stats().ahead), (3, 2));
}

#[test]
fn what_a_host_cannot_need_is_refused_and_nothing_of_it_is_queued() {
    let mut service = service();
    assert_eq!(ask(&mut service, 0, &want(1, &[0], &[])), Err(WantError::Vm { vm: 1 }));
    assert_eq!(ask(&mut service, 0, &want(9, &[0], &[])), Err(WantError::Vm { vm: 9 }));
    let beyond = WantError::Page { vm: 0, page: 100, page_count: 100 };
    assert_eq!(ask(&mut service, 0, &want(0, &[1, 100], &[])), Err(beyond.clone()));
    assert_eq!(ask(&mut service, 0, &want(0, &[1], &[(99, 2)])), Err(beyond));
    let far = ask(&mut service, 0, &want(0, &[], &[(u32::MAX, u32::MAX)]));
    assert!(matches!(far, Err(WantError::Page { .. })));
    assert_eq!(all(&mut service), []);
}

#[test]
fn a_host_without_room_gets_answers_but_nothing_ahead() {
    let mut service = service();
    ask(&mut service, 0, &want(0, &[3], &[(10, 5)])).expect("has the VM");
    assert_eq!(service.poll(&mut |_| false).map(|answer| answer.pages), Some(vec![3]));
    assert_eq!(service.poll(&mut |_| false), None);
    assert_eq!(service.poll(&mut |_| true).map(|answer| answer.pages.len()), Some(5));
}

#[test]
fn what_a_block_is_about_to_bring_is_answered_only_if_it_is_late() {
    let mut service = service();
    let now = Duration::from_secs(1);
    for host in [0, 1] {
        let mut is_coming = |page| page != 9;
        service.handle_want(host, &want(0, &[7, 8, 9], &[]), now, &mut is_coming).expect("has the VM");
    }
    assert_eq!(all(&mut service), [(0, 0, vec![9]), (1, 0, vec![9])]);
    let due = service.poll_timeout().expect("some are held");
    service.handle_timeout(due - Duration::from_millis(1), &mut |_, _, _| panic!("too early"));
    ask(&mut service, 0, &want(0, &[7], &[])).expect("has the VM");
    assert_eq!(all(&mut service), [], "asked for again, it is on its way");
    // Host 1 lost the block of page 8.
    service.handle_timeout(due, &mut |host, _, page| (host, page) != (1, 8));
    assert_eq!(all(&mut service), [(1, 0, vec![8])]);
    assert_eq!((service.stats().shared, service.stats().late), (3, 1));
    // A connection that is lost takes what is held with it.
    service.handle_connected(0);
    service.handle_want(0, &want(0, &[7], &[]), now, &mut |_| true).expect("has the VM");
    service.handle_connected(0);
    assert_eq!(service.poll_timeout(), None);
}
