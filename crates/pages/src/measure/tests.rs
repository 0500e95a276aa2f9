//! Against an exact count of bytes, over several hosts.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const KEY: [u8; 32] = [7; 32];

/// Pages by a small number each: 0 is a zero page, 1 a uniform one.
fn image(numbers: &[u16]) -> Vec<Page> {
    numbers.iter().map(|number| page(u32::from(*number))).collect()
}

fn page(number: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    match number {
        0 => {}
        1 => page.fill(9),
        _ => page.chunks_exact_mut(4).zip(0u32..).for_each(|(chunk, at)| {
            chunk.copy_from_slice(&number.wrapping_mul(0x9e37_79b9).wrapping_add(at / 16).to_le_bytes());
        }),
    }
    page
}

fn measured(images: &[Vec<Page>], domains: &[u32], sampling: Sampling) -> Measured {
    let sources: Vec<&dyn PageSource> = images.iter().map(|image| image as &dyn PageSource).collect();
    let input = MeasureInput { sources: &sources, domains, key: &KEY, sampling, threads: 2 };
    measure(&input).expect("few sets")
}

fn sources(images: &[Vec<Page>]) -> Vec<&dyn PageSource> {
    images.iter().map(|image| image as &dyn PageSource).collect()
}

/// The two turns, as hosts and coordinator take them.
fn over_hosts<'a>(hosts: &[Measured], images: impl IntoIterator<Item = &'a [Vec<Page>]>) -> Joined {
    let bits = fingerprint_bits(hosts.iter().map(Measured::content_count).sum());
    let told: Vec<Vec<u64>> =
        hosts.iter().map(|host| host.fingerprints(bits).decode().expect("just encoded")).collect();
    let candidates = in_common(&told);
    let told = hosts.iter().zip(images).zip(&candidates).map(|((host, images), of_host)| {
        host.summary(&sources(images), Encoding::Raw, of_host.iter().copied())
    });
    join(&told.collect::<Vec<HostSummary>>())
}

/// VM sets with their contents and pages, counted by comparing everything.
fn exact(hosts: &[Vec<Vec<u16>>]) -> BTreeMap<Vec<u32>, (u64, u64)> {
    let vms: Vec<&Vec<u16>> = hosts.iter().flatten().collect();
    let numbers: BTreeSet<u16> = vms.iter().flat_map(|vm| vm.iter().copied()).filter(|n| *n > 1).collect();
    let mut sums: BTreeMap<Vec<u32>, (u64, u64)> = BTreeMap::new();
    for number in numbers {
        let holders = (0u32..).zip(&vms).filter(|(_, vm)| vm.contains(&number)).map(|(at, _)| at).collect();
        let pages = vms.iter().flat_map(|vm| vm.iter()).filter(|n| **n == number).count();
        let sum = sums.entry(holders).or_default();
        sum.0 += 1;
        sum.1 += pages as u64;
    }
    sums
}

use std::collections::BTreeMap;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hosts_together_find_what_comparing_all_finds(
        hosts in prop::collection::vec(prop::collection::vec(prop::collection::vec(0u16..40, 0..50), 0..4), 1..5),
    ) {
        let images: Vec<Vec<Vec<Page>>> =
            hosts.iter().map(|vms| vms.iter().map(|vm| image(vm)).collect()).collect();
        let measured: Vec<Measured> =
            images.iter().map(|vms| measured(vms, &vec![0; vms.len()], Sampling::ALL)).collect();
        let joined = over_hosts(&measured, images.iter().map(Vec::as_slice));
        let found: BTreeMap<Vec<u32>, (u64, u64)> =
            joined.weights.iter().map(|w| (w.vms.clone(), (w.contents, w.pages))).collect();
        prop_assert_eq!(&found, &exact(&hosts));
        prop_assert!(joined.weights.iter().all(|weight| weight.standard_error == 0));
        let uniform = |n| hosts.iter().flatten().flatten().filter(|page| **page == n).count() as u64;
        prop_assert_eq!((joined.classes.zero_pages, joined.classes.uniform_nonzero_pages), (uniform(0), uniform(1)));
        let c = joined.classes;
        let pages = c.unique + c.repeated_in_one_vm.1 + c.shared_by_vms_of_one_host.1 + c.shared_across_hosts.1;
        prop_assert_eq!(pages, found.values().map(|sum| sum.1).sum::<u64>());
        let one_vm = found.iter().filter(|(vms, _)| vms.len() == 1).map(|(_, sum)| sum.0).sum::<u64>();
        prop_assert_eq!(c.unique + c.repeated_in_one_vm.0, one_vm);
    }

    #[test]
    fn fingerprints_survive_their_code(mut set in prop::collection::vec(any::<u32>(), 0..300), bits in 8u8..=56) {
        let mut values: Vec<u64> = set.drain(..).map(|v| u64::from(v) & ((1 << bits) - 1)).collect();
        values.sort_unstable();
        let coded = Fingerprints::of(bits, values.iter().copied());
        prop_assert_eq!(coded.decode(), Ok(values));
    }

    #[test]
    fn damaged_fingerprints_are_no_panic(bits: u8, rice: u8, count: u64, code in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Fingerprints { bits, rice, count, code }.decode();
    }
}

#[test]
fn fingerprints_take_little_more_than_a_byte() {
    let mut random = 1u64;
    let mut values: Vec<u64> = (0..100_000)
        .map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> (64 - u32::from(fingerprint_bits(100_000)))
        })
        .collect();
    values.sort_unstable();
    let coded = Fingerprints::of(fingerprint_bits(100_000), values.iter().copied());
    assert!(coded.code.len() < 125_000, "{} bytes", coded.code.len());
    let mut cut = coded.clone();
    cut.code.pop();
    assert_eq!(cut.decode(), Err(FingerprintsError::Damaged { count: 100_000 }));
    cut.count = u64::MAX;
    assert_eq!(cut.decode(), Err(FingerprintsError::Damaged { count: u64::MAX }));
}

#[test]
fn tenants_apart_learn_nothing_of_each_other() {
    let same = image(&[2, 3, 4, 5]);
    let (two, one) = ([same.clone(), same.clone()], [same]);
    let hosts = [measured(&two, &[1, 2], Sampling::ALL), measured(&one, &[1], Sampling::ALL)];
    let joined = over_hosts(&hosts, [&two[..], &one[..]]);
    let sets: Vec<(&[u32], u64)> = joined.weights.iter().map(|w| (&w.vms[..], w.contents)).collect();
    assert_eq!(sets, [(&[0, 2][..], 4), (&[1][..], 4)]);
}

#[test]
fn crafted_xxh3_collisions_gain_nothing() {
    // Whatever XXH3 makes of them: pages that differ in a byte are two contents under the key.
    let (a, mut b) = (page(2), page(2));
    b[PAGE_SIZE - 1] ^= 1;
    let images = [vec![a, b]];
    let joined = over_hosts(&[measured(&images, &[0], Sampling::ALL)], [&images[..]]);
    assert_eq!(joined.contents, 2);
}

#[test]
fn an_error_is_stated_that_estimates_keep() {
    // 6,000 contents of VM 0 alone, 3,000 of both, 1,000 of VM 1 on another host alone.
    let vm = |range: std::ops::Range<u32>| -> Vec<Page> { range.map(|n| page(n + 2)).collect() };
    let (first, second) = ([vm(0..9_000)], [vm(6_000..10_000)]);
    let truth: [(&[u32], f64); 3] = [(&[0], 6_000.0), (&[0, 1], 3_000.0), (&[1], 1_000.0)];
    let (mut within_one, mut within_two, mut judged) = (0, 0, 0);
    let mut sum_of_estimates = 0.0;
    const RUNS: u8 = 60;
    for run in 0..RUNS {
        let key = [run; 32];
        let hosts = [&first, &second].map(|images| {
            let source: [&dyn PageSource; 1] = [&images[0]];
            let sampling = Sampling::one_in(10);
            measure(&MeasureInput { sources: &source, domains: &[0], key: &key, sampling, threads: 2 })
                .expect("few sets")
        });
        let joined = over_hosts(&hosts, [&first[..], &second[..]]);
        sum_of_estimates += joined.contents as f64;
        for (vms, true_contents) in truth {
            let weight = joined.weights.iter().find(|w| w.vms == vms).expect("hundreds are sampled");
            let off = (weight.contents as f64 - true_contents).abs();
            let error = weight.standard_error as f64;
            judged += 1;
            within_one += u32::from(off <= error);
            within_two += u32::from(off <= 2.0 * error);
        }
    }
    // Of a normal distribution 68 % and 95 %; 180 cases, and the keys are fixed, so this never changes.
    let share = |count| f64::from(count) / f64::from(judged);
    assert!((0.58..0.78).contains(&share(within_one)), "{}", share(within_one));
    assert!(share(within_two) > 0.90, "{}", share(within_two));
    let mean = sum_of_estimates / f64::from(RUNS);
    assert!((mean - 10_000.0).abs() < 150.0, "{mean} on average of 10,000");
}

#[test]
fn encoded_bytes_are_sampled() {
    let hosts = [[(2..300).map(page).collect::<Vec<_>>()], [(200..400).map(page).collect()]];
    let bytes = |encoding| {
        let told = hosts.iter().map(|images| {
            let all = measured(images, &[0], Sampling::ALL);
            let shared = usize::try_from(all.content_count()).expect("a few hundred");
            // Whatever is a candidate is sized by itself.
            all.summary(&sources(images), encoding, (0..shared).map(|at| at % 3 > 0))
        });
        let joined = join(&told.collect::<Vec<_>>());
        joined.weights.iter().map(|weight| weight.bytes / weight.contents).max().expect("weights")
    };
    assert!((PLAIN_BYTES..PLAIN_BYTES + 100).contains(&bytes(Encoding::Raw)));
    assert!(bytes(Encoding::Zstd { level: 1 }) < PLAIN_BYTES / 4);
}
