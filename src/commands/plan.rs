//! `scatter plan`: an inventory, measured if the images are here, becomes a plan.

use crate::cli::args::Plan as Args;
use crate::cli::exit::{Coded, Exit, Failure, Outcome};
use crate::commands::{answers, read_text, threads, write_file};
use crate::images::Sample;
use crate::{images, units};
use anyhow::Context;
use pages::{MergeIndex, MergeInput, PageSource, merge};
use planner::inventory::Vm;
use planner::{
    FORMAT_VERSION, Inventory, Isolation, Plan, PlanError, SignatureWeight, Signatures, make_plan,
};
use std::path::Path;
use std::sync::Arc;
use vmm::image::MappedImage;

/// Weights, and how they came about, in words.
struct Weights {
    signatures: Option<Signatures>,
    note: String,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let text = read_text(&args.inventory)?;
    let inventory = Inventory::from_json(&text)
        .with_context(|| args.inventory.display().to_string())
        .or_exit(Exit::Input)?;
    let weights = weights(args, &inventory)?;
    if let (Some(path), Some(signatures)) = (&args.save_signatures, &weights.signatures) {
        write_file(path, &(serde_json::to_string_pretty(signatures).or_exit(Exit::Internal)? + "\n"))?;
    }
    let planned = reachable_images(&inventory, args)?;
    let mut plan = make_plan(&planned, weights.signatures.as_ref(), args.seed).map_err(refusal)?;
    super::stale::stamp(&mut plan, &args.inventory, &inventory, args.output.as_deref());
    let asked = answers::are_asked(args);
    match &args.output {
        Some(path) => write_file(path, &plan.to_json())?,
        None if asked => {}
        None => print!("{}", plan.to_json()),
    }
    // With the plan on standard output, the summary must not get into it.
    let summary = summary(&plan, &weights.note);
    if args.output.is_some() || asked {
        print!("{summary}")
    } else {
        eprint!("{summary}")
    }
    answers::answer(args, &planned, weights.signatures.as_ref(), &plan)
}

fn refusal(error: PlanError) -> Failure {
    let exit = match error {
        PlanError::Place(_) | PlanError::Refused(_) => Exit::Plan,
        _ => Exit::Input,
    };
    Failure { exit, error: error.into() }
}

/// Relative paths of images start at the file they are written in; a plan elsewhere gets whole paths.
fn reachable_images(inventory: &Inventory, args: &Args) -> Outcome<Inventory> {
    let folder = |file: &Path| file.parent().unwrap_or(Path::new("")).to_owned();
    let mut planned = inventory.clone();
    if args.output.as_deref().map(folder) == Some(folder(&args.inventory)) {
        return Ok(planned);
    }
    for vm in &mut planned.vms {
        let attachments = vm.launch.iter_mut().flat_map(|launch| launch.attachments.values_mut());
        for path in attachments.chain([&mut vm.image]).filter(|path| !images::is_running(path)) {
            let whole = images::path_beside(&args.inventory, path);
            let whole = std::path::absolute(&whole).or_exit(Exit::Input)?;
            *path = whole.into_os_string().into_string().map_err(|path| {
                let message = format!("VM {}: the path {} is not UTF-8", vm.name, path.display());
                Failure::new(Exit::Input, message)
            })?;
        }
    }
    Ok(planned)
}

fn weights(args: &Args, inventory: &Inventory) -> Outcome<Weights> {
    if let Some(path) = &args.signatures {
        let signatures = Signatures::from_json(&read_text(path)?)
            .with_context(|| path.display().to_string())
            .or_exit(Exit::Input)?;
        return Ok(Weights {
            signatures: Some(signatures),
            note: format!("measured earlier ({})", path.display()),
        });
    }
    let assumed = |why: &str| {
        let note = format!("assumed ({why}): each VM counts in full, as unlike any other");
        Ok(Weights { signatures: None, note })
    };
    if args.no_measure {
        return assumed("--no-measure");
    }
    let here = |vm: &&Vm| images::path_beside(&args.inventory, &vm.image).is_file();
    let vms: Vec<&Vm> = inventory.vms.iter().filter(here).collect();
    if vms.is_empty() {
        return assumed("no image can be read here");
    }
    measure(args, inventory, &vms)
}

/// Merges the images that are here.
fn measure(args: &Args, inventory: &Inventory, vms: &[&Vm]) -> Outcome<Weights> {
    let threads = threads(args.threads);
    let open = |vm: &&Vm| images::open(&vm.name, &images::path_beside(&args.inventory, &vm.image), vm.format);
    let opened: Vec<Arc<MappedImage>> = vms.iter().map(open).collect::<Outcome<_>>()?;
    let sources: Vec<&dyn PageSource> = opened.iter().map(|image| &**image as &dyn PageSource).collect();
    let tenants: Vec<Option<&str>> = vms.iter().map(|vm| vm.tenant.as_deref()).collect();
    let domains = super::send::domains(inventory.isolation == Isolation::Strict, &tenants);
    let index = merge(&MergeInput { sources: &sources, domains: &domains, threads });
    let shared: Vec<Arc<dyn PageSource>> = opened.iter().map(|image| Arc::clone(image) as _).collect();
    let costs = images::encoding_costs(&index, &shared, Sample::Thorough);
    let rate = u64::from(inventory.source.rate_mbps) * 1_000_000;
    let (encoding, ratio) = images::encoding_for(&costs, None, rate, threads);
    images::check_unchanged(&opened)?;
    let signatures = signatures(&index, vms, ratio);
    let missing: Vec<&str> = inventory
        .vms
        .iter()
        .map(|vm| vm.name.as_str())
        .filter(|name| !vms.iter().any(|vm| vm.name == *name))
        .collect();
    let mut note = format!(
        "measured {} images ({} contents, {encoding} at {:.0} % of their size)",
        vms.len(),
        index.content_count(),
        ratio * 100.0,
    );
    if !missing.is_empty() {
        note += &format!("; assumed in full, as their images are not here: {}", missing.join(", "));
    }
    Ok(Weights { signatures: Some(signatures), note })
}

fn signatures(index: &MergeIndex, vms: &[&Vm], ratio: f64) -> Signatures {
    let weight = |(set, pages): (&pages::IdSet, u64)| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number of bytes"
        )]
        let bytes = (units::float(pages) * units::float(pages::PAGE_SIZE as u64) * ratio).round() as u64;
        let vms = set.iter().map(|vm| vms[usize::from(vm)].name.clone()).collect();
        SignatureWeight { vms, pages, bytes, ..SignatureWeight::default() }
    };
    let mut weights: Vec<SignatureWeight> =
        index.signatures().iter().zip(index.signature_weights()).map(weight).collect();
    // A VM of uniform pages only was measured, too.
    for vm in vms {
        if !weights.iter().any(|weight| weight.vms.contains(&vm.name)) {
            weights.push(SignatureWeight { vms: vec![vm.name.clone()], ..SignatureWeight::default() });
        }
    }
    Signatures { version: FORMAT_VERSION, weights, measured: None }
}

fn summary(plan: &Plan, note: &str) -> String {
    let mut text =
        format!("plan {}: {} VMs to {} hosts; {note}\n", plan.name, plan.vms.len(), plan.hosts.len());
    let wide = plan.hosts.iter().map(|host| host.name.len()).max().unwrap_or(0);
    for (index, host) in plan.hosts.iter().enumerate() {
        let vms: Vec<&str> =
            plan.vms.iter().filter(|vm| vm.hosts.contains(&host.name)).map(|vm| vm.name.as_str()).collect();
        let bytes = plan.predicted.as_ref().and_then(|predicted| predicted.host_bytes.get(index));
        let bytes = bytes.map_or(String::new(), |bytes| units::bytes(*bytes));
        text += &format!("  {:<wide$}  {:>9}  {}\n", host.name, bytes, shortened(&vms));
    }
    if let Some(predicted) = &plan.predicted {
        text += &format!(
            "predicted: {} sent ({} of different contents) in {} groups, {} joins, about {}\n",
            units::bytes(predicted.source_bytes),
            units::bytes(predicted.unique_bytes),
            plan.groups.len(),
            predicted.joins,
            units::time(units::float(predicted.duration_ms) / 1e3),
        );
    }
    text
}

/// The first names, and how many more.
pub(crate) fn shortened(names: &[&str]) -> String {
    const SHOWN_MAX: usize = 8;
    match names.len() {
        0 => "nothing".to_owned(),
        count if count > SHOWN_MAX => {
            format!("{} and {} more", names[..SHOWN_MAX].join(", "), count - SHOWN_MAX)
        }
        _ => names.join(", "),
    }
}
