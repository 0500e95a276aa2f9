//! Random images, layouts, interruptions: whatever happens, what is held is what it claims to be, and what is
//! finished is the image of the session that finished it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use pages::PAGE_SIZE;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::faults::Faults;
use super::*;

#[derive(Clone, Debug)]
struct Session {
    /// Image A or B.
    later: bool,
    /// Few, so that blocks recur.
    layout: u64,
    order: u64,
    /// Blocks announced before it ends; past the last, images are finished.
    steps: usize,
    checkpoint_every: usize,
    fault: Fault,
}

#[derive(Clone, Debug)]
enum Fault {
    /// Dropped as it is.
    None,
    /// Killed at the given change to the disk.
    Kill(i64),
    /// The same, and all that was not synced is lost in part, as the seed says.
    Power(i64, u64),
    /// Dropped; then the journal is cut off.
    Cut(proptest::sample::Index),
    /// Dropped; then a byte of the journal is flipped.
    Damage(proptest::sample::Index, u8),
}

fn sessions() -> impl Strategy<Value = Vec<Session>> {
    let fault = prop_oneof![
        Just(Fault::None),
        (0i64..150).prop_map(Fault::Kill),
        (0i64..150, any::<u64>()).prop_map(|(fuel, seed)| Fault::Power(fuel, seed)),
        any::<u64>().prop_map(|seed| Fault::Power(1 << 40, seed)),
        any::<proptest::sample::Index>().prop_map(Fault::Cut),
        (any::<proptest::sample::Index>(), 1u8..).prop_map(|(at, flip)| Fault::Damage(at, flip)),
    ];
    let session = (any::<bool>(), 0u64..3, any::<u64>(), 0usize..40, 1usize..30, fault).prop_map(
        |(later, layout, order, steps, checkpoint_every, fault)| Session {
            later,
            layout,
            order,
            steps,
            checkpoint_every,
            fault,
        },
    );
    proptest::collection::vec(session, 1..7)
}

struct World {
    root: tempfile::TempDir,
    images: [Vec<Image>; 2],
    /// Every block there ever was.
    blocks: HashMap<[u8; 32], Block>,
    boot: u32,
    /// Damage to the journal may have cost the knowledge of whose a finished image is.
    damaged: bool,
}

/// The result of a call at which the session may have been killed.
type Outcome<T> = Result<T, StoreError>;

impl World {
    fn new(seed: u64, pages: [usize; 2]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let before = vec![Image::random(3, pages[0], &mut rng), Image::random(7, pages[1], &mut rng)];
        let after = before.iter().map(|image| image.changed(&mut rng)).collect();
        Self { root: scratch(), images: [before, after], blocks: HashMap::new(), boot: 0, damaged: false }
    }

    fn root(&self) -> &Path {
        self.root.path()
    }

    /// Plays a session; whether it was killed.
    fn run(&mut self, session: &Session) -> bool {
        let fuel = match session.fault {
            Fault::Kill(fuel) | Fault::Power(fuel, _) => fuel,
            _ => 1 << 40,
        };
        let faults = Faults::new(fuel);
        let result = self.play(session, &faults);
        assert!(result.is_ok() || faults.crashed(), "{:?}", result.err());
        let journal = self.root().join(".scatter/t.journal");
        match &session.fault {
            Fault::Power(_, seed) => {
                faults.power_failure(self.root(), &mut StdRng::seed_from_u64(*seed));
                self.boot += 1;
            }
            Fault::Cut(at) if journal.exists() => {
                let len = fs::metadata(&journal).unwrap().len();
                let at = at.index(usize::try_from(len).unwrap() + 1) as u64;
                fs::OpenOptions::new().write(true).open(&journal).unwrap().set_len(at).unwrap();
                self.damaged = true;
            }
            Fault::Damage(at, flip) if journal.exists() => {
                let mut bytes = fs::read(&journal).unwrap();
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                fs::write(&journal, bytes).unwrap();
                self.damaged = true;
            }
            _ => {}
        }
        self.check_finished();
        faults.crashed()
    }

    fn play(&mut self, session: &Session, faults: &Arc<Faults>) -> Outcome<()> {
        let images = self.images[usize::from(session.later)].clone();
        let mut blocks = layout(&images, &mut StdRng::seed_from_u64(session.layout));
        blocks.shuffle(&mut StdRng::seed_from_u64(session.order));
        self.blocks.extend(blocks.iter().map(|block| (block.digest, block.clone())));

        let disk = Disk { faults: Some(Arc::clone(faults)) };
        let store = Store::open_as(self.root(), &format!("boot-{}", self.boot), u64::MAX, disk)?;
        let specs: Vec<_> = images.iter().map(Image::spec).collect();
        let intake = match store.begin("t", &specs, false) {
            Err(StoreError::ImageExists { .. }) if self.damaged => store.begin("t", &specs, true)?,
            other => other?,
        };
        self.check_held(&intake.held_digests());
        for (step, block) in blocks.iter().enumerate().take(session.steps) {
            if !intake.confirm_held(&block.digest) {
                let stats = intake.place(block.digest, &block.decoded())?;
                assert!(!stats.already_held);
            }
            if step % session.checkpoint_every == session.checkpoint_every - 1 {
                intake.checkpoint()?;
            }
        }
        for image in &images {
            let complete = intake.is_complete(image.vm);
            assert_eq!(complete, intake.remaining_pages(image.vm) == 0);
            assert!(complete || session.steps < blocks.len());
            if complete {
                let path = intake.finish(image.vm)?;
                assert!(
                    fs::read(path).unwrap() == image.bytes(),
                    "{} differs from what was sent",
                    image.name
                );
                assert!(!part(self.root(), &image.name).exists());
            }
        }
        Ok(())
    }

    /// What is held has the bytes that its digest stands for.
    fn check_held(&self, held: &[[u8; 32]]) {
        for image in &self.images[0] {
            let (ram, part) = (ram(self.root(), &image.name), part(self.root(), &image.name));
            let file = fs::read(if part.exists() { part } else { ram }).unwrap();
            for digest in held {
                for (pfn, bytes) in self.blocks[digest].pages_of(image.vm) {
                    let found = &file[pfn as usize * PAGE_SIZE..];
                    let len = found.len().min(PAGE_SIZE);
                    assert!(found[..len] == bytes[..len], "page {pfn} of {} is held but differs", image.name);
                }
            }
        }
    }

    /// A file at its final name is one of the images, whole.
    fn check_finished(&self) {
        for (before, after) in self.images[0].iter().zip(&self.images[1]) {
            if let Ok(bytes) = fs::read(ram(self.root(), &before.name)) {
                assert!(bytes == before.bytes() || bytes == after.bytes(), "{} is half-done", before.name);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_finished_image_is_right_whatever_happened_before(seed: u64, sessions in sessions()) {
        let mut world = World::new(seed, [40, 23]);
        for session in &sessions {
            world.run(session);
        }
        let last = Session { steps: usize::MAX, fault: Fault::None, ..sessions[sessions.len() - 1].clone() };
        world.run(&last);
        for image in &world.images[usize::from(last.later)] {
            assert!(ram(world.root(), &image.name).exists());
        }
    }
}

/// Image A is received, then B is on its way when the machine stops at one change to the disk after another, then A is
/// wanted again, in the same blocks as before.
#[test]
fn a_stop_at_any_change_to_the_disk_is_survived() {
    let session = Session {
        later: false,
        layout: 0,
        order: 0,
        steps: usize::MAX,
        checkpoint_every: 3,
        fault: Fault::None,
    };
    for power in 0..6 {
        for fuel in 0.. {
            let fault = if power == 0 {
                Fault::Kill(fuel)
            } else {
                Fault::Power(fuel, fuel.cast_unsigned() * 8 + power)
            };
            let mut world = World::new(power, [18, 9]);
            world.run(&session);
            let killed =
                world.run(&Session { later: true, layout: 1, checkpoint_every: 2, fault, ..session.clone() });
            world.run(&session);
            if !killed {
                assert!(fuel > 20, "the session changes the disk more often than that");
                break;
            }
        }
    }
}

/// Two blocks about the same page, and a store whose disk may fail.
struct Duel {
    root: tempfile::TempDir,
    faults: Arc<Faults>,
    images: [Image; 2],
    first: Block,
    second: Block,
}

impl Duel {
    fn new(rng: &mut StdRng) -> Self {
        let mut images = [Image::random(3, 1, rng), Image::random(7, 1, rng)];
        (images[0].kinds[0], images[0].tail) = (3, PAGE_SIZE);
        let [first, second] = [3, 4].map(|kind| {
            let mut block = Block::default();
            block.add(VmId(3), 0, &[kind], true);
            block.sealed()
        });
        Self { root: scratch(), faults: Faults::new(1 << 40), images, first, second }
    }

    fn begin(&self) -> super::super::Intake {
        let disk = Disk { faults: Some(Arc::clone(&self.faults)) };
        let store = Store::open_as(self.root.path(), "boot-0", u64::MAX, disk).unwrap();
        store.begin("t", &self.images.each_ref().map(Image::spec), false).unwrap()
    }

    /// After a power failure the first block is held only if the image has its bytes.
    fn judge(&self, rng: &mut StdRng, what: &str) {
        self.faults.power_failure(self.root.path(), rng);
        let store = open_as(self.root.path(), "boot-1");
        let intake = store.begin("t", &self.images.each_ref().map(Image::spec), false).unwrap();
        if intake.confirm_held(&self.first.digest) {
            let file = fs::read(part(self.root.path(), &self.images[0].name)).unwrap();
            assert!(file == self.images[0].bytes(), "{what}");
        }
    }
}

/// A block is killed after a checkpoint synced the journal and before it sets its mark; then the power fails while the
/// mark is being synced.
#[test]
fn a_checkpoint_does_not_vouch_for_a_block_killed_meanwhile() {
    for seed in 0..64 {
        let mut rng = StdRng::seed_from_u64(seed);
        let duel = Duel::new(&mut rng);
        let intake = Arc::new(duel.begin());
        intake.place(duel.first.digest, &duel.first.decoded()).unwrap();
        let (placing, second, faults) = (Arc::clone(&intake), duel.second.clone(), Arc::clone(&duel.faults));
        // Two images, then the journal.
        duel.faults.after_sync(3, move || {
            placing.place(second.digest, &second.decoded()).unwrap();
            faults.set_fuel(1);
        });
        let _ = intake.checkpoint();
        drop(intake);
        duel.judge(&mut rng, &format!("seed {seed}"));
    }
}

/// A block was killed by another; the power fails at each step of the checkpoint after that.
#[test]
fn a_checkpoint_cut_short_does_not_bring_a_killed_block_back() {
    for (fuel, seed) in (0..6).flat_map(|fuel| (0..32).map(move |seed| (fuel, seed))) {
        let mut rng = StdRng::seed_from_u64(seed);
        let duel = Duel::new(&mut rng);
        let intake = duel.begin();
        intake.place(duel.first.digest, &duel.first.decoded()).unwrap();
        intake.checkpoint().unwrap();
        intake.place(duel.second.digest, &duel.second.decoded()).unwrap();
        duel.faults.set_fuel(fuel);
        let _ = intake.checkpoint();
        drop(intake);
        duel.judge(&mut rng, &format!("fuel {fuel}, seed {seed}"));
    }
}
