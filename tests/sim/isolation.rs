//! What a block tells its readers beside pages: where else they stand.

use crate::world::{MemoryImage, SYMBOL_SIZE};
use pages::block::{BlockLimits, Encoding, Scratch, decode_block};
use pages::{IdSet, PAGE_SIZE};
use sender::encode::{EncodePlan, encode_stripe};
use sender::prepare::{Prepared, VmInput};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Tenant and host of each VM: two tenants meet on host 0, and each has a VM elsewhere.
const VMS: [(u32, u16); 5] = [(1, 0), (1, 1), (2, 0), (2, 2), (2, 1)];

/// Of all blocks, the (tenant, host) pairs in which a host that has no VM of the tenant reads of a place in one of its.
fn told(strict: bool) -> BTreeSet<(u32, u16)> {
    // Half of the pages are the same everywhere.
    let image =
        |vm: u8| MemoryImage((0..64).map(|at| [if at % 2 == 0 { at } else { at ^ vm }; PAGE_SIZE]).collect());
    let varied = |mut image: MemoryImage| {
        image.0.iter_mut().for_each(|page| page[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]));
        image
    };
    let input = |(vm, (tenant, host)): (usize, (u32, u16))| VmInput {
        name: format!("vm{vm}"),
        file_len: 64 * PAGE_SIZE as u64,
        source: Arc::new(varied(image(u8::try_from(vm + 1).expect("small") << 6))),
        hosts: IdSet::from_iter([host]),
        domain: if strict { tenant } else { 0 },
    };
    let prepared = Prepared::new(VMS.into_iter().enumerate().map(input).collect(), 1);
    let plan = EncodePlan::new(Encoding::Raw, 0.5, SYMBOL_SIZE);
    let mut told = BTreeSet::new();
    for segment in 0..prepared.segments.len() {
        let readers: Vec<u16> = prepared.segments[segment].hosts.iter().collect();
        for stripe in prepared.stripes(segment) {
            for block in encode_stripe(&prepared, &stripe, &plan, &mut Scratch::new()) {
                let mut scratch = Scratch::new();
                let decoded =
                    decode_block(&block.bytes, &BlockLimits::default(), &mut scratch).expect("our own");
                let places =
                    decoded.runs.iter().map(|run| run.vm).chain(decoded.uniform.iter().map(|u| u.vm));
                for vm in places {
                    let (tenant, _) = VMS[usize::from(vm.0)];
                    let strangers = readers.iter().filter(|host| !VMS.contains(&(tenant, **host)));
                    told.extend(strangers.map(|host| (tenant, *host)));
                }
            }
        }
    }
    told
}

#[test]
fn strict_isolation_names_no_places_of_other_tenants() {
    assert_eq!(told(true), BTreeSet::new());
    assert!(
        told(false).contains(&(1, 2)),
        "without it, host 2 learns of pages of tenant 1: {:?}",
        told(false)
    );
}
