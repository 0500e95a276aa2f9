//! A plan as a picture: the network with its links' load, what VMs have in common, who is in which group when.
//!
//! An SVG of its own, on a light ground, in colours that people with colour-blindness tell apart (Okabe and Ito's, and shades of
//! one blue); whatever a colour says stands there as a figure or a place, too.

mod draw;
mod matrix;
mod network;
mod timeline;

use crate::inventory::Inventory;
use crate::signatures::{SignatureError, Signatures, weights};
use crate::{Overhead, Plan};

use draw::Drawing;

/// Width of the picture.
const WIDTH: f64 = 1200.0;
/// Space around and between its parts.
const GAP: f64 = 28.0;

/// What VMs have in common.
#[derive(Clone, Debug, Default)]
pub struct Sharing {
    /// VM indexes of the plan, none twice, and the bytes of all contents that exactly these VMs hold.
    pub sets: Vec<(Vec<u16>, u64)>,
}

impl Sharing {
    /// As measured.
    ///
    /// # Errors
    /// [`SignatureError`] if the signatures do not fit the inventory.
    pub fn measured(inventory: &Inventory, signatures: &Signatures) -> Result<Self, SignatureError> {
        let weights = weights(inventory, Some(signatures))?;
        Ok(Self { sets: weights.into_iter().map(|weight| (weight.vms, weight.bytes)).collect() })
    }
}

/// Draws a plan; if it is known, with the matrix of what VMs have in common.
#[must_use]
pub fn svg(plan: &Plan, sharing: Option<&Sharing>) -> String {
    let mut drawing = Drawing::new(WIDTH);
    let (vms, hosts) = (plan.vms.len(), plan.hosts.len());
    let title = format!("{}: {vms} VMs to {hosts} hosts", plan.name);
    drawing.text(GAP, 34.0, 20.0, &title);
    let mut y = 58.0;
    y = network::draw(&mut drawing, plan, y) + GAP;
    if let Some(sharing) = sharing {
        y = matrix::draw(&mut drawing, plan, sharing, y) + GAP;
    }
    y = timeline::draw(&mut drawing, plan, &Overhead::of(&plan.multicast), y);
    drawing.finish(y + GAP)
}
