//! What a plan was made of, written into it by `plan`, and looked at again by `send`.

use crate::cli::exit::{Exit, Failure, Outcome};
use crate::images;
use planner::plan::{ImageStamp, Plan};
use planner::{Inventory, PlanFileError, Violation, check, check_images};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Notes the inventory, and the images that are here. `plan_file` is where the plan will be, `None` for standard output.
pub(crate) fn stamp(plan: &mut Plan, inventory_file: &Path, inventory: &Inventory, plan_file: Option<&Path>) {
    // Images' paths start at the plan's file; on standard output they are whole.
    let beside = plan_file.unwrap_or(Path::new(""));
    for vm in &mut plan.vms {
        vm.stamp = look_at(&images::path_beside(beside, &vm.image));
    }
    if let Some(origin) = &mut plan.origin {
        origin.fingerprint = inventory.fingerprint();
        let whole = std::path::absolute(inventory_file).ok();
        origin.inventory = whole.and_then(|path| path.into_os_string().into_string().ok());
    }
}

/// Refuses a plan whose images, or whose inventory if it is still there, say otherwise now.
pub(crate) fn refuse(plan: &Plan, plan_file: &Path) -> Outcome<()> {
    let now: Vec<Option<ImageStamp>> =
        plan.vms.iter().map(|vm| look_at(&images::path_beside(plan_file, &vm.image))).collect();
    let mut found: Vec<Violation> = check_images(plan, &now).err().unwrap_or_default();
    found.extend(inventory_differs(plan, plan_file));
    if found.is_empty() {
        return Ok(());
    }
    let error = anyhow::Error::new(PlanFileError::Refused(found)).context(plan_file.display().to_string());
    Err(Failure { exit: Exit::Plan, error })
}

/// What in the inventory, changed since, the plan does not follow. One that is gone or cannot be read says nothing.
fn inventory_differs(plan: &Plan, plan_file: &Path) -> Vec<Violation> {
    let Some(origin) = &plan.origin else { return Vec::new() };
    let Some(path) = origin.inventory.as_deref().map(Path::new) else { return Vec::new() };
    let Some(mut inventory) =
        std::fs::read_to_string(path).ok().and_then(|text| Inventory::from_json(&text).ok())
    else {
        return Vec::new();
    };
    if inventory.fingerprint() == origin.fingerprint {
        return Vec::new();
    }
    // The plan may name the same image by another path.
    let whole = |file: &Path, image: &str| std::path::absolute(images::path_beside(file, image)).ok();
    for vm in &mut inventory.vms {
        let planned = plan.vms.iter().find(|planned| planned.name == vm.name);
        if let Some(planned) = planned.filter(|p| whole(plan_file, &p.image) == whole(path, &vm.image)) {
            vm.image.clone_from(&planned.image);
        }
    }
    check(plan, Some(&inventory)).err().unwrap_or_default()
}

/// Size and time of a file, if it can be looked at.
pub(super) fn look_at(path: &Path) -> Option<ImageStamp> {
    let metadata = std::fs::metadata(path).ok()?;
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    let modified_ns = u64::try_from(modified.as_nanos()).ok()?;
    Some(ImageStamp { bytes: metadata.len(), modified_ns })
}
