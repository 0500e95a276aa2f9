//! `scatter measure`'s near end: asks hosts to measure their images, over the authenticated control channel, and joins
//! what they tell with what was measured here.
//!
//! A host that cannot be reached, will not, or breaks off is left out and named; the others' figures stay exact, since
//! what is common to several hosts is found among those that told.

mod line;

pub(crate) use line::{Line, at_once, unexpected};

use net::pki::Identity;
use pages::PageSource;
use pages::block::Encoding;
use pages::measure::{
    Candidate, HostSummary, Joined, Measured, Sampling, VmPages, fingerprint_bits, in_common, join,
};
use std::net::SocketAddr;
use std::sync::Arc;
use wire::control::measure::{Ask, Start, Tell};

/// Contents of one measurement at most, over all hosts: a coordinator holds eight bytes for each. 1 TiB of contents.
pub const CONTENTS_MAX: u64 = 1 << 28;
/// VM sets that one host may tell.
const SETS_MAX: usize = pages::measure::SETS_MAX;
/// VMs of all sets of one host: what a host can make us hold, 64 MiB.
const SET_VMS_MAX: usize = 32 << 20;

/// How to measure.
#[derive(Clone)]
pub struct MeasureConfig {
    /// Drawn for this measurement ([`fresh_key`]).
    pub key: [u8; 32],
    /// Which contents are kept.
    pub sampling: Sampling,
    /// How contents would be encoded.
    pub encoding: Encoding,
    /// VMs wanted of hosts, each with its domain; empty: all, in domain 0.
    pub vms: Vec<(String, u32)>,
}

/// A host that told.
#[derive(Clone, PartialEq, Debug)]
pub struct MeasuredHost {
    /// Its name.
    pub name: String,
    /// Names of its VMs, and their pages.
    pub vms: Vec<(String, VmPages)>,
    /// Contents kept, each once.
    pub contents: u64,
    /// Bytes of frames to and from it.
    pub control_bytes: u64,
}

/// Everything that hosts told.
#[derive(Clone, PartialEq, Debug)]
pub struct Measurement {
    /// The hosts that told, in the order asked; VMs of [`Joined`] are numbered over them. This host comes first, if it
    /// measured.
    pub hosts: Vec<MeasuredHost>,
    /// What their VMs have in common.
    pub joined: Joined,
    /// Bits of a fingerprint.
    pub fingerprint_bits: u8,
    /// Hosts that did not tell, and why.
    pub failed: Vec<(String, String)>,
}

/// A key for one measurement: hosts and coordinator know it, guests do not.
///
/// # Errors
/// The system gives no randomness.
pub fn fresh_key() -> std::io::Result<[u8; 32]> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(key)
}

/// What was measured on this host: its name, its VMs' names, and what `pages::measure` gave.
pub struct Here {
    /// This host's name.
    pub name: String,
    /// Names of its VMs, in the order measured.
    pub vms: Vec<String>,
    /// Their pages.
    pub images: Vec<Arc<dyn PageSource>>,
    /// Measured with the same key and sampling.
    pub measured: Measured,
}

impl Here {
    fn summary(&self, encoding: Encoding, candidates: Option<Vec<bool>>) -> HostSummary {
        let sources: Vec<&dyn PageSource> =
            self.images.iter().map(|image| &**image as &dyn PageSource).collect();
        match candidates {
            Some(candidates) => self.measured.summary(&sources, encoding, candidates.into_iter()),
            None => self.measured.summary_alone(&sources, encoding),
        }
    }
}

/// A host that is being asked.
struct Asked {
    host: MeasuredHost,
    line: Line,
}

/// Asks all hosts, at the same time, and joins. Without hosts no `identity` is needed.
///
/// # Errors
/// In words, if there are more contents than [`CONTENTS_MAX`], or hosts and no identity. A host's own trouble is in [`Measurement::failed`].
///
/// # Panics
/// Never: what was just encoded can be decoded.
pub async fn measure_hosts(
    here: Option<Here>,
    hosts: &[(String, SocketAddr)],
    identity: Option<&Identity>,
    config: &MeasureConfig,
) -> Result<Measurement, String> {
    let mut failed = Vec::new();
    let identity = match identity {
        Some(identity) => identity,
        None if hosts.is_empty() => return Ok(alone(here, config.encoding)),
        None => return Err("hosts cannot be asked without a certificate".to_owned()),
    };
    let mut asked =
        at_once(hosts.iter().map(|(name, address)| start(name, *address, identity, config)), &mut failed)
            .await;
    let own_contents = here.as_ref().map_or(0, |here| here.measured.content_count());
    let contents = asked.iter().map(|asked| asked.host.contents).fold(own_contents, u64::saturating_add);
    if contents > CONTENTS_MAX {
        return Err(format!(
            "there are {contents} contents on the hosts, and at most {CONTENTS_MAX} can be joined at once: measure a sample \
             (--sample {} or more)",
            contents.div_ceil(CONTENTS_MAX)
        ));
    }
    let bits = fingerprint_bits(contents);
    let told = at_once(asked.drain(..).map(|asked| fingerprints(asked, bits)), &mut failed).await;
    let mut fingerprints: Vec<Vec<u64>> = Vec::with_capacity(told.len() + 1);
    if let Some(here) = &here {
        let own = here.measured.fingerprints(bits).decode();
        fingerprints.push(own.expect("just encoded"));
    }
    let mut still = Vec::with_capacity(told.len());
    for (asked, of_host) in told {
        fingerprints.push(of_host);
        still.push(asked);
    }
    let mut candidates = in_common(&fingerprints).into_iter();
    drop(fingerprints);
    let (mut of_hosts, mut summaries) = (Vec::new(), Vec::new());
    if let Some(here) = here {
        let own = candidates.next().expect("an answer for each host");
        summaries.push(here.summary(config.encoding, Some(own)));
        let vms = here.vms.into_iter().zip(here.measured.vms().iter().copied()).collect();
        of_hosts.push(MeasuredHost { name: here.name, vms, contents: own_contents, control_bytes: 0 });
    }
    let last = at_once(
        still.into_iter().zip(candidates).map(|(asked, of_host)| summary(asked, of_host, config)),
        &mut failed,
    );
    for (host, summary) in last.await {
        of_hosts.push(host);
        summaries.push(summary);
    }
    Ok(Measurement { hosts: of_hosts, joined: join(&summaries), fingerprint_bits: bits, failed })
}

/// What was measured here, without any other host.
fn alone(here: Option<Here>, encoding: Encoding) -> Measurement {
    let summaries: Vec<HostSummary> = here.iter().map(|here| here.summary(encoding, None)).collect();
    let host = here.map(|here| MeasuredHost {
        contents: here.measured.content_count(),
        vms: here.vms.into_iter().zip(here.measured.vms().iter().copied()).collect(),
        name: here.name,
        control_bytes: 0,
    });
    let joined = join(&summaries);
    Measurement { hosts: host.into_iter().collect(), joined, fingerprint_bits: 0, failed: Vec::new() }
}

async fn start(
    name: &str,
    address: SocketAddr,
    identity: &Identity,
    config: &MeasureConfig,
) -> Result<Asked, (String, String)> {
    let begin = async {
        let line = Line::open(address, identity, name).await?;
        let host = MeasuredHost { name: name.to_owned(), vms: Vec::new(), contents: 0, control_bytes: 0 };
        let mut asked = Asked { host, line };
        asked
            .line
            .ask(Ask::Start(Start {
                version: wire::VERSION,
                key: config.key,
                keep_below: config.sampling.threshold(),
                encoding: config.encoding.to_string(),
                vms: config.vms.clone(),
            }))
            .await?;
        match asked.line.told().await? {
            Tell::Scanned { vms, contents } => {
                asked.host.contents = contents;
                let pages = |vm: &wire::control::measure::VmTold| VmPages {
                    pages: vm.pages,
                    zero: vm.zero,
                    uniform_nonzero: vm.uniform_nonzero,
                };
                asked.host.vms = vms.iter().map(|vm| (vm.name.clone(), pages(vm))).collect();
                Ok(asked)
            }
            _ => Err(unexpected()),
        }
    };
    begin.await.map_err(|why| (name.to_owned(), why))
}

async fn fingerprints(mut asked: Asked, bits: u8) -> Result<(Asked, Vec<u64>), (String, String)> {
    match asked.line.fingerprints(bits, asked.host.contents).await {
        Ok(fingerprints) => Ok((asked, fingerprints)),
        Err(why) => Err((asked.host.name, why)),
    }
}

async fn summary(
    mut asked: Asked,
    candidates: Vec<bool>,
    config: &MeasureConfig,
) -> Result<(MeasuredHost, HostSummary), (String, String)> {
    let name = asked.host.name.clone();
    let count = candidates.iter().filter(|candidate| **candidate).count();
    let get = async {
        asked.line.candidates(&candidates).await?;
        drop(candidates);
        let mut summary = HostSummary {
            sampling: config.sampling,
            vms: asked.host.vms.iter().map(|(_, pages)| *pages).collect(),
            sets: Vec::new(),
            set_bytes: Vec::new(),
            own: Vec::new(),
            candidates: Vec::new(),
        };
        let mut set_vms = 0;
        loop {
            match asked.line.told().await? {
                Tell::Sets(sets) => {
                    set_vms += sets.iter().map(|set| set.vms.len()).sum::<usize>();
                    if summary.sets.len() + sets.len() > SETS_MAX || set_vms > SET_VMS_MAX {
                        return Err(format!("tells more than {SETS_MAX} VM sets, or sets too large"));
                    }
                    sets.into_iter().for_each(|set| add_set(&mut summary, set));
                }
                Tell::Hashes(hashes) => {
                    if summary.candidates.len() + hashes.len() > count {
                        return Err(format!("tells more hashes than the {count} asked for"));
                    }
                    summary.candidates.extend(hashes.into_iter().map(|told| Candidate {
                        hash: u128::from_le_bytes(told.hash),
                        set: told.set,
                        pages: told.pages,
                        bytes: told.bytes,
                    }));
                }
                Tell::Complete if summary.candidates.len() == count => return Ok(summary),
                Tell::Complete => return Err(format!("told {} of {count} hashes", summary.candidates.len())),
                _ => return Err(unexpected()),
            }
        }
    };
    match get.await {
        Ok(summary) => {
            asked.host.control_bytes = asked.line.bytes();
            Ok((asked.host, summary))
        }
        Err(why) => Err((name, why)),
    }
}

fn add_set(summary: &mut HostSummary, set: wire::control::measure::SetTold) {
    summary.sets.push(set.vms);
    summary.set_bytes.push(set.content_bytes);
    summary.own.push(pages::measure::Own {
        contents: set.contents,
        pages: set.pages,
        repeated_contents: set.repeated_contents,
        repeated_pages: set.repeated_pages,
    });
}
