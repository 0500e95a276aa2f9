//! Pages that guests wait for: the sender's page service and the hosts' wants on connections that break, with blocks that come, or are
//! lost on their way, beside answers. Virtual time, under seeds.

use pages::Bitmap;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use receiver::guests::Wants;
use sender::page_service::PageService;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use vmm::lazy::{LazyImage, Origin};
use wire::control::{Paging, Want};

const PAGES: u32 = 640;
const BLOCK_PAGES: u32 = 20;
const HOSTS: usize = 3;
const STEP: Duration = Duration::from_millis(1);
/// Guests fault, connections break and blocks are lost until then …
const FAULTS_UNTIL: Duration = Duration::from_secs(2);
/// … and all is answered by then.
const END: Duration = Duration::from_secs(3);

struct Host {
    image: LazyImage,
    wants: Wants,
    asked: VecDeque<Want>,
    answered: VecDeque<Vec<u32>>,
    /// Answered on this connection.
    sent: Bitmap,
    demanded: Bitmap,
    /// Of each block: nothing, or when it is there or known to be lost.
    blocks: BTreeMap<u32, (Duration, bool)>,
}

struct World {
    now: Duration,
    random: StdRng,
    service: PageService,
    hosts: Vec<Host>,
    connections: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let paging = Paging { around: 8, working_set: true, wait_ms: 0 };
        let host = |_| {
            let mut wants = Wants::new(0, PAGES, paging);
            wants.set_working_set(&(0..PAGES / 4).map(|page| page * 3).collect::<Vec<_>>());
            Host {
                image: LazyImage::memfd("sim", PAGES).expect("a memfd"),
                wants,
                asked: VecDeque::new(),
                answered: VecDeque::new(),
                sent: Bitmap::new(PAGES),
                demanded: Bitmap::new(PAGES),
                blocks: BTreeMap::new(),
            }
        };
        Self {
            now: Duration::ZERO,
            random: StdRng::seed_from_u64(seed),
            service: PageService::new(vec![vec![0]; HOSTS], BTreeMap::from([(0, PAGES)])),
            hosts: (0..HOSTS).map(host).collect(),
            connections: 0,
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        if now < FAULTS_UNTIL {
            self.disturb();
        }
        for at in 0..HOSTS {
            self.hear(at);
        }
        let hosts = &self.hosts;
        self.service.handle_timeout(now, &mut |host, _, page| {
            hosts[host].blocks.get(&(page / BLOCK_PAGES)).is_some_and(|(at, whole)| *whole && *at <= now)
        });
        while let Some(answer) = self.service.poll(&mut |_| true) {
            let host = &mut self.hosts[answer.host];
            for page in &answer.pages {
                assert!(
                    host.sent.set(*page),
                    "page {page} went to host {} twice on a connection",
                    answer.host
                );
            }
            host.answered.push_back(answer.pages);
        }
    }

    /// Faults of guests, a block that goes out, a connection that breaks.
    fn disturb(&mut self) {
        let now = self.now;
        for host in &mut self.hosts {
            if self.random.random_bool(0.3) {
                let page = self.random.random_range(0..PAGES);
                host.demanded.set(page);
                host.image.demand(page);
            }
        }
        if self.random.random_bool(0.01) {
            let block = self.random.random_range(0..PAGES / BLOCK_PAGES);
            for host in &mut self.hosts {
                let at = now + STEP * self.random.random_range(3..40);
                let whole = self.random.random_bool(0.8);
                host.blocks.entry(block).or_insert((at, whole));
            }
        }
        if self.random.random_bool(0.004) {
            let at = self.random.random_range(0..HOSTS);
            let host = &mut self.hosts[at];
            // What was on its way is lost.
            host.asked.clear();
            host.answered.clear();
            host.sent = Bitmap::new(PAGES);
            host.wants.restart(&host.image, now);
            self.service.handle_connected(at);
            self.connections += 1;
        }
    }

    /// A host takes in what came, and asks; the sender hears what it asked a step before.
    fn hear(&mut self, at: usize) {
        let now = self.now;
        let host = &mut self.hosts[at];
        for page in std::mem::take(&mut host.answered).into_iter().flatten() {
            host.image.place_word(page, 1, u64::from(page), Origin::Sender).expect("the same bytes");
        }
        for (block, _) in host.blocks.iter().filter(|(_, (at, whole))| *whole && *at == now) {
            for page in block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES {
                host.image.place_word(page, 1, u64::from(page), Origin::Block).expect("the same bytes");
            }
        }
        for want in std::mem::take(&mut host.asked) {
            let blocks = &host.blocks;
            let mut is_coming =
                |page: u32| blocks.get(&(page / BLOCK_PAGES)).is_some_and(|(at, _)| *at > now);
            let again = self.random.random_bool(0.2);
            for _ in 0..=u32::from(again) {
                self.service.handle_want(at, &want, now, &mut is_coming).expect("it has the VM");
            }
        }
        while let Some(want) = host.wants.poll(&host.image, now) {
            host.asked.push_back(want);
        }
    }
}

#[test]
fn every_page_that_a_guest_waits_for_comes_whatever_breaks() {
    let mut all = (0, 0, 0, 0, 0);
    for seed in 0..40 {
        let mut world = World::new(seed);
        while world.now < END {
            world.step();
        }
        for (at, host) in world.hosts.iter().enumerate() {
            let missing: Vec<u32> =
                (0..PAGES).filter(|page| host.demanded.get(*page) && !host.image.is_here(*page)).collect();
            assert!(missing.is_empty(), "seed {seed}: host {at} waits for {missing:?} for ever");
        }
        let stats = world.service.stats();
        all = (
            all.0 + stats.answered,
            all.1 + stats.suppressed,
            all.2 + stats.shared,
            all.3 + stats.late,
            all.4 + world.connections,
        );
    }
    println!("answered, suppressed, shared, late, connections lost: {all:?}");
    assert!(
        all.0 > 0 && all.1 > 0 && all.2 > 0 && all.3 > 0 && all.4 > 40,
        "something never happened: {all:?}"
    );
}
