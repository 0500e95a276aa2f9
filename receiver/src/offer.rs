//! Whether an offer makes sense at this host.

use wire::control::{Offer, RefuseCause};

/// Why it does not, for machines and in words.
pub(crate) fn check_offer(offer: &Offer, name: &str) -> Result<(), (RefuseCause, String)> {
    if !offer.version_is_spoken() {
        let (theirs, ours) = (offer.version, wire::VERSION);
        let reason =
            format!("the sender speaks protocol version {theirs}, this host {ours}: update the older");
        return Err((RefuseCause::Version, reason));
    }
    if offer.host != name {
        let reason = format!("this host is {name}, the plan expects {} here: check its address", offer.host);
        return Err((RefuseCause::Offer, reason));
    }
    let mut ids: Vec<u16> = offer.vms.iter().map(|vm| vm.vm).collect();
    ids.sort_unstable();
    ids.dedup();
    let lengths = offer.vms.iter().all(|vm| u64::from(vm.page_count) == vm.file_len.div_ceil(4096));
    if ids.len() != offer.vms.len() || !lengths || offer.symbol_size_max < 256 {
        return Err((RefuseCause::Offer, "the offer contradicts itself".into()));
    }
    Ok(())
}
