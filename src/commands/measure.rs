//! `scatter measure`: what VMs have in common, here and on other hosts.

use crate::cli::args::Measure as Args;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::{load_keys, read_text, threads, write_file};
use crate::{images, units};
use anyhow::Context;
use pages::PageSource;
use pages::measure::{MeasureInput, Sampling, measure};
use planner::inventory::Vm;
use planner::signatures::{
    FoundWeight, MeasuredBy, MeasuredClass, MeasuredClasses, MeasuredHost, MeasuredVm,
};
use planner::{Inventory, Isolation, Signatures};
use sender::measure::{Here, MeasureConfig, Measurement, fresh_key, measure_hosts};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use vmm::image::MappedImage;

/// VM sets in the summary.
const SETS_SHOWN: usize = 8;

pub(crate) fn run(args: &Args) -> Outcome {
    let start = Instant::now();
    let inventory = Inventory::from_json(&read_text(&args.inventory)?)
        .with_context(|| args.inventory.display().to_string())
        .or_exit(Exit::Input)?;
    let config = MeasureConfig {
        key: fresh_key().or_exit(Exit::System)?,
        sampling: Sampling::one_in(args.sample),
        encoding: args.encoding,
        vms: if inventory.isolation == Isolation::Strict { domains(&inventory) } else { Vec::new() },
    };
    let here = here(args, &inventory, &config)?;
    if here.is_none() && !args.hosts {
        let way_out = "run this where they are, or ask the hosts that have them (--hosts)";
        let wrong = format!("no image of {} can be read here: {way_out}", args.inventory.display());
        return Err(Failure::new(Exit::Input, wrong));
    }
    let measurement = ask(args, &inventory, here, &config)?;
    let signatures = signatures(&inventory, &measurement, args);
    let json = serde_json::to_string_pretty(&signatures).or_exit(Exit::Internal)? + "\n";
    let summary = summary(&signatures, start.elapsed().as_secs_f64());
    match &args.output {
        Some(path) => {
            write_file(path, &json)?;
            print!("{summary}");
        }
        None => {
            print!("{json}");
            eprint!("{summary}");
        }
    }
    let told = measurement.hosts.iter().any(|host| !host.vms.is_empty());
    Ok(match (measurement.failed.is_empty(), told) {
        (true, _) => Exit::Done,
        (false, true) => Exit::SomeFailed,
        (false, false) => Exit::AllFailed,
    })
}

/// Each VM with its tenant's number.
fn domains(inventory: &Inventory) -> Vec<(String, u32)> {
    let tenants: Vec<Option<&str>> = inventory.vms.iter().map(|vm| vm.tenant.as_deref()).collect();
    let domains = super::send::domains(inventory.isolation == Isolation::Strict, &tenants);
    inventory.vms.iter().map(|vm| vm.name.clone()).zip(domains).collect()
}

/// Measures the images that can be read here.
fn here(args: &Args, inventory: &Inventory, config: &MeasureConfig) -> Outcome<Option<Here>> {
    let path = |vm: &Vm| images::path_beside(&args.inventory, &vm.image);
    let all = inventory.vms.iter().zip(domains(inventory));
    let (vms, domains): (Vec<&Vm>, Vec<u32>) =
        all.filter(|(vm, _)| path(vm).is_file()).map(|(vm, (_, domain))| (vm, domain)).unzip();
    if vms.is_empty() {
        return Ok(None);
    }
    let open = |vm: &&Vm| images::open(&vm.name, &path(vm), vm.format);
    let opened: Vec<Arc<MappedImage>> = vms.iter().map(open).collect::<Outcome<_>>()?;
    let sources: Vec<&dyn PageSource> = opened.iter().map(|image| &**image as &dyn PageSource).collect();
    let measured = measure(&MeasureInput {
        sources: &sources,
        domains: &domains,
        key: &config.key,
        sampling: config.sampling,
        threads: threads(args.threads),
    });
    let measured = measured.or_exit(Exit::Input)?;
    images::check_unchanged(&opened)?;
    let images = opened.iter().map(|image| Arc::clone(image) as Arc<dyn PageSource>).collect();
    let vms = vms.iter().map(|vm| vm.name.clone()).collect();
    Ok(Some(Here { name: inventory.source.name.clone(), vms, images, measured }))
}

/// Joins what was measured here with what hosts tell.
fn ask(
    args: &Args,
    inventory: &Inventory,
    here: Option<Here>,
    config: &MeasureConfig,
) -> Outcome<Measurement> {
    let (hosts, identity) = if args.hosts {
        let keys = args.keys.clone().unwrap_or_else(|| Path::new("keys").join(&inventory.source.name));
        (addresses(inventory)?, Some(load_keys(&keys)?))
    } else {
        (Vec::new(), None)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(Exit::System)?;
    let asked = runtime.block_on(measure_hosts(here, &hosts, identity.as_ref(), config));
    asked.map_err(|why| Failure::new(Exit::Input, why))
}

fn addresses(inventory: &Inventory) -> Outcome<Vec<(String, SocketAddr)>> {
    let address = |host: &planner::inventory::Host| {
        let address = host.address.parse().with_context(|| format!("host {}: {}", host.name, host.address));
        Ok((host.name.clone(), address.or_exit(Exit::Input)?))
    };
    inventory.hosts.iter().map(address).collect()
}

/// An image is a VM of the inventory if it was measured here, or on the first host that has it while it is not here.
/// Everything else that a host holds are pages that it has already.
fn signatures(inventory: &Inventory, measurement: &Measurement, args: &Args) -> Signatures {
    let mut taken: Vec<&str> = Vec::new();
    // For each VM over all hosts: its name if it is one to move, else the host that holds it.
    let mut owners: Vec<Result<String, String>> = Vec::new();
    let mut hosts = Vec::new();
    for host in &measurement.hosts {
        let mut vms = Vec::new();
        for (name, pages) in &host.vms {
            let wanted = inventory.vms.iter().any(|vm| vm.name == *name) && !taken.contains(&name.as_str());
            if wanted {
                taken.push(name);
            }
            owners.push(if wanted { Ok(name.clone()) } else { Err(host.name.clone()) });
            vms.push(MeasuredVm {
                name: name.clone(),
                resident: !wanted,
                pages: pages.pages,
                zero_pages: pages.zero,
                uniform_nonzero_pages: pages.uniform_nonzero,
            });
        }
        let (name, contents, control_bytes) = (host.name.clone(), host.contents, host.control_bytes);
        hosts.push(MeasuredHost { name, vms, contents, control_bytes });
    }
    let joined = &measurement.joined;
    let found = joined.weights.iter().map(|weight| {
        let owner = |vm: &u32| owners[*vm as usize].clone();
        let (vms, resident): (Vec<_>, Vec<_>) = weight.vms.iter().map(owner).partition(Result::is_ok);
        FoundWeight {
            vms: vms.into_iter().flatten().collect(),
            resident: resident.into_iter().filter(|_| args.resident).filter_map(Result::err).collect(),
            pages: weight.contents,
            bytes: weight.bytes,
            repeated_pages: weight.repeated,
            standard_error_pages: weight.standard_error,
        }
    });
    let names: Vec<String> = taken.iter().map(|&name| name.to_owned()).collect();
    let measured = MeasuredBy {
        encoding: args.encoding.to_string(),
        sample_one_in: args.sample,
        contents: joined.contents,
        contents_standard_error: joined.contents_standard_error,
        classes: classes(&joined.classes),
        hosts,
        not_measured: measurement.failed.iter().cloned().collect(),
        fingerprint_bits: measurement.fingerprint_bits.into(),
    };
    Signatures::of_measurement(found.collect(), &names, measured)
}

fn classes(joined: &pages::measure::JoinedClasses) -> MeasuredClasses {
    let class = |(contents, pages)| MeasuredClass { contents, pages };
    MeasuredClasses {
        zero: class((0, joined.zero_pages)),
        uniform_nonzero: class((0, joined.uniform_nonzero_pages)),
        unique: class((joined.unique, joined.unique)),
        repeated_in_one_vm: class(joined.repeated_in_one_vm),
        shared_by_vms_of_one_host: class(joined.shared_by_vms_of_one_host),
        shared_across_hosts: class(joined.shared_across_hosts),
    }
}

fn summary(signatures: &Signatures, seconds: f64) -> String {
    let Some(measured) = &signatures.measured else { return String::new() };
    let images: usize = measured.hosts.iter().map(|host| host.vms.len()).sum();
    let pages: u64 = measured.hosts.iter().flat_map(|host| &host.vms).map(|vm| vm.pages).sum();
    let control: u64 = measured.hosts.iter().map(|host| host.control_bytes).sum();
    let mut text = format!(
        "measured {images} images on {} in {}: {}, {}\n",
        if measured.hosts.len() == 1 {
            "1 host".to_owned()
        } else {
            format!("{} hosts", measured.hosts.len())
        },
        units::time(seconds),
        units::bytes(pages * 4096),
        if measured.sample_one_in > 1 {
            format!(
                "1 content in {} kept, about {} ± {} different ones",
                measured.sample_one_in, measured.contents, measured.contents_standard_error
            )
        } else {
            format!("{} different contents", measured.contents)
        },
    );
    for host in &measured.hosts {
        let name = |vm: &MeasuredVm| format!("{}{}", vm.name, if vm.resident { " (stays)" } else { "" });
        let names: Vec<String> = host.vms.iter().map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        text += &format!("  {}: {}\n", host.name, super::plan::shortened(&names));
    }
    for (host, why) in &measured.not_measured {
        text += &format!("  {host}: NOT MEASURED: {why}\n");
    }
    text += "pages by class\n";
    for (name, class) in measured.classes.by_name() {
        text += &format!("  {name:<26} {:>10}  {:>7}\n", class.pages, units::percent(class.pages, pages));
    }
    text += &largest(signatures);
    if measured.hosts.len() > 1 {
        text += &format!(
            "control traffic {}, {:.2} % of the memory measured\n",
            units::bytes(control),
            units::float(control) * 100.0 / units::float((pages * 4096).max(1))
        );
    }
    text
}

/// The VM sets with most in common.
fn largest(signatures: &Signatures) -> String {
    let mut shared: Vec<_> = signatures
        .weights
        .iter()
        .filter(|weight| weight.vms.len() > 1 || !weight.resident.is_empty())
        .collect();
    shared.sort_by_key(|weight| std::cmp::Reverse(weight.bytes));
    let mut text = format!("in common, encoded ({} VM sets", shared.len());
    text += if shared.len() > SETS_SHOWN { "; the largest)\n" } else { ")\n" };
    for weight in shared.iter().take(SETS_SHOWN) {
        let names: Vec<&str> = weight.vms.iter().map(String::as_str).collect();
        let error = match weight.standard_error_pages {
            0 => String::new(),
            error => format!(" ± {}", units::percent(error, weight.pages)),
        };
        let resident = match weight.resident.as_slice() {
            [] => String::new(),
            hosts => format!(", already at {}", hosts.join(", ")),
        };
        text += &format!(
            "  {:>9}{error}  {}{resident}\n",
            units::bytes(weight.bytes),
            super::plan::shortened(&names)
        );
    }
    text
}
