use super::*;
use proptest::prelude::*;

/// A link of 100 Mb/s, one of 1 Gb/s, and one that costs nothing.
const SLOW: f64 = 80.0;
const GIGABIT: f64 = 8.0;
const FREE: f64 = 0.0;

fn shape() -> BlockShape {
    BlockShape::new(64 * 1424, 1424).unwrap()
}

fn lacking(missing: u128) -> HostDeficit {
    HostDeficit { missing, ..HostDeficit::default() }
}

fn choose(hosts: &[HostDeficit], link: f64, loss: f64) -> RepairPlan {
    CostModel::default().choose(&shape(), hosts, 64, link, loss)
}

#[test]
fn nothing_missing_needs_nothing() {
    assert_eq!(choose(&[], GIGABIT, 0.01), RepairPlan::Source(0));
    assert_eq!(choose(&[lacking(0)], GIGABIT, 0.01), RepairPlan::Source(0));
    // A bit that is no symbol of this block.
    assert_eq!(choose(&[lacking(1 << 64), lacking(1 << 65)], GIGABIT, 0.0), RepairPlan::Source(0));
}

#[test]
fn one_host_gets_source_symbols() {
    assert_eq!(choose(&[lacking(0b1011)], GIGABIT, 0.2), RepairPlan::Source(0b1011));
    // It holds two repair symbols: one source symbol is enough on a slow link, all three spare the CPU on a
    // free one.
    let host = HostDeficit { missing: 0b1011, has_raptorq: 1, has_cauchy: 1 };
    assert_eq!(choose(&[host], SLOW, 0.0), RepairPlan::Source(0b1));
    assert_eq!(choose(&[host], FREE, 0.0), RepairPlan::Source(0b1011));
}

#[test]
fn different_losses_get_one_fresh_symbol_on_a_bound_link() {
    let hosts: Vec<HostDeficit> = (0..8).map(|host| lacking(1 << host)).collect();
    assert_eq!(choose(&hosts, GIGABIT, 0.0), RepairPlan::Fresh { scheme: Scheme::Cauchy, count: 1 });
    // On a link that costs nothing, the CPU is spared.
    assert_eq!(choose(&hosts, FREE, 0.0), RepairPlan::Source(0xff));
}

#[test]
fn the_same_loss_everywhere_gets_the_source_symbol() {
    assert_eq!(choose(&[lacking(2); 8], GIGABIT, 0.0), RepairPlan::Source(2));
}

#[test]
fn cauchy_is_not_chosen_beyond_its_last_symbol() {
    let hosts: Vec<HostDeficit> = (0..8).map(|host| lacking(0b111 << (4 * host))).collect();
    let model = CostModel::default();
    let at = |next| model.choose(&shape(), &hosts, next, GIGABIT, 0.0);
    assert_eq!(at(64 + 125), RepairPlan::Fresh { scheme: Scheme::Cauchy, count: 3 });
    assert_eq!(at(64 + 126), RepairPlan::Fresh { scheme: Scheme::RaptorQ, count: 3 });
    assert_eq!(at(u32::MAX), RepairPlan::Fresh { scheme: Scheme::RaptorQ, count: 3 });
}

#[test]
fn large_deficits_of_large_symbols_go_to_raptorq() {
    let shape = BlockShape::new(64 * 8920, 8920).unwrap();
    let hosts: Vec<HostDeficit> = (0..4).map(|host| lacking(0xffff_ffff_ffff << (4 * host))).collect();
    let plan = CostModel::default().choose(&shape, &hosts, 64, SLOW, 0.0);
    assert_eq!(plan, RepairPlan::Fresh { scheme: Scheme::RaptorQ, count: 48 });
}

#[test]
fn symbols_held_are_not_sent_again() {
    let hosts: Vec<HostDeficit> = (0..4)
        .map(|host| HostDeficit { missing: 0b1111 << (4 * host), has_raptorq: 2, has_cauchy: 1 })
        .collect();
    assert_eq!(choose(&hosts, GIGABIT, 0.0), RepairPlan::Fresh { scheme: Scheme::Cauchy, count: 1 });
    // Enough held, and yet a deficit: the rows held were dependent.
    let hosts = hosts.map_held(9);
    assert_eq!(choose(&hosts, GIGABIT, 0.0), RepairPlan::Fresh { scheme: Scheme::Cauchy, count: 1 });
}

trait MapHeld {
    fn map_held(self, held: u32) -> Self;
}

impl MapHeld for Vec<HostDeficit> {
    fn map_held(self, held: u32) -> Self {
        self.into_iter().map(|host| HostDeficit { has_raptorq: held, ..host }).collect()
    }
}

#[test]
fn loss_is_provided_for() {
    let hosts: Vec<HostDeficit> = (0..8).map(|host| lacking(0xff << (4 * host))).collect();
    let counts = [0.0, 0.01, 0.05, 0.2].map(|loss| match choose(&hosts, GIGABIT, loss) {
        RepairPlan::Fresh { count, .. } => count,
        RepairPlan::Source(_) => 0,
    });
    // Eight hosts need 8 each. At 20 %, a host gets 8 of 13 with probability 0.970, so all with 0.78 (of 12:
    // 0.55).
    assert_eq!(counts, [8, 9, 10, 13]);
}

/// Against a plain simulation: what is expected is what happens on average.
#[test]
fn expectations_agree_with_simulation() {
    let mut state = 88_172_645_463_325_252u64;
    let mut chance = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let hosts = [lacking(0b111), lacking(0b1), lacking(0b1111_1000), lacking(0b11)];
    let loss = 0.15;
    let rounds = 20_000;
    let mut total = 0;
    for _ in 0..rounds {
        let mut needs: Vec<u32> = hosts.iter().map(HostDeficit::needed).collect();
        while needs.iter().any(|&need| need > 0) {
            total += 1;
            for need in &mut needs {
                *need = need.saturating_sub(u32::from(chance() >= loss));
            }
        }
    }
    let average = f64::from(total) / f64::from(rounds);
    let (_, expected) = fresh_symbols(&hosts, loss);
    assert!((average - expected).abs() < 0.05, "{average} on average, {expected} expected");

    let mut total = 0;
    for _ in 0..rounds {
        let mut lacking = 5;
        while lacking > 0 {
            total += 1;
            lacking = (0..lacking).filter(|_| chance() < loss).count();
        }
    }
    let average = f64::from(total) / f64::from(rounds);
    assert!((average - transmissions(5, loss)).abs() < 0.02);
}

proptest! {
    #[test]
    fn any_figures_give_a_plan_that_can_be_carried_out(
        hosts in prop::collection::vec((any::<u128>(), 0u32..200, any::<u32>()), 0..20),
        len in 1u32..100_000,
        next in any::<u32>(),
        link in prop::num::f64::ANY,
        loss in prop::num::f64::ANY,
    ) {
        let hosts: Vec<HostDeficit> = hosts
            .into_iter()
            .map(|(missing, has_raptorq, has_cauchy)| HostDeficit { missing, has_raptorq, has_cauchy })
            .collect();
        let shape = BlockShape::for_len(len, 1424).unwrap();
        match CostModel::default().choose(&shape, &hosts, next, link, loss) {
            RepairPlan::Source(symbols) => prop_assert_eq!(symbols & !shape.all_symbols(), 0),
            RepairPlan::Fresh { scheme, count } => {
                prop_assert!(count >= 1 && hosts.len() > 1);
                if scheme == Scheme::Cauchy {
                    prop_assert!(next + count <= shape.symbols() + CAUCHY_REPAIR_SYMBOLS);
                }
            }
        }
    }

    #[test]
    fn fewest_symbols_on_a_slow_link(
        missing in prop::collection::vec(1u128..1 << 64, 2..9),
        link in 1000.0f64..1e6,
    ) {
        let hosts: Vec<HostDeficit> = missing.iter().map(|&bits| lacking(bits)).collect();
        let most = missing.iter().map(|bits| bits.count_ones()).max().unwrap();
        let union = missing.iter().fold(0, |union, bits| union | bits);
        match choose(&hosts, link, 0.0) {
            RepairPlan::Fresh { count, .. } => prop_assert!(count == most && count < union.count_ones()),
            RepairPlan::Source(symbols) => prop_assert!(symbols == union && union.count_ones() == most),
        }
    }
}
