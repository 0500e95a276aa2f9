//! What two QEMUs must have in common for one to go on where the other stopped.

use super::super::qmp::{Qmp, QmpError};
use super::super::stream::Block;
use super::StateError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A QEMU and its VM, as far as they decide who can take its stream. Asked over QMP, before anything is sent. What is empty
/// is not known (of an image that does not tell), and not compared.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fingerprint {
    /// QEMU's version, as `10.0.2`.
    pub version: String,
    /// Machine type, as `pc-q35-10.0`.
    pub machine: String,
    /// `kvm` or `tcg`: their device sections are not interchangeable.
    pub accelerator: String,
    /// The type of the first CPU, as `max-x86_64-cpu`.
    pub cpu: String,
    /// CPUID as the guest sees it, where the CPU's model tells: register by register, in QEMU's order.
    pub cpu_features: Vec<u64>,
    /// Number of virtual CPUs.
    pub vcpus: usize,
    /// RAM blocks that migrate or not: name, used length, most length, page size; in bytes.
    pub blocks: Vec<RamBlockRow>,
    /// Migration capabilities that this QEMU knows.
    pub capabilities: Vec<String>,
}

/// A row of `x-query-ramblock`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RamBlockRow {
    /// As `pc.ram`.
    pub id: String,
    /// Bytes of a page.
    pub page_size: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes at most: only blocks of firmware tables can grow.
    pub max: u64,
}

/// The first way in which a destination differs from a source.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("{what}: the source has {source_has}, the destination {destination_has}; {remedy}")]
pub struct Mismatch {
    /// What differs.
    pub what: String,
    /// At the source.
    pub source_has: String,
    /// At the destination.
    pub destination_has: String,
    /// What to do about it.
    pub remedy: &'static str,
}

impl Fingerprint {
    /// Asks a QEMU.
    ///
    /// # Errors
    ///
    /// [`QmpError`]; one that is older than 6.2 cannot tell its RAM blocks.
    pub fn of(qmp: &mut Qmp) -> Result<Self, QmpError> {
        let machine = qmp.execute("qom-get", json!({"path": "/machine", "property": "type"}))?;
        let machine = machine.as_str().unwrap_or_default().trim_end_matches("-machine").to_owned();
        let kvm = qmp.execute("query-kvm", Value::Null)?["enabled"] == true;
        let cpus = qmp.execute("query-cpus-fast", Value::Null)?;
        let cpus = cpus.as_array().cloned().unwrap_or_default();
        let first = cpus.first().map_or(Value::Null, |cpu| cpu["qom-path"].clone());
        let property =
            |qmp: &mut Qmp, name: &str| qmp.execute("qom-get", json!({"path": first, "property": name}));
        let cpu = property(qmp, "type")?.as_str().unwrap_or_default().to_owned();
        // Only x86 tells; other CPUs are compared by their type.
        let words = property(qmp, "feature-words").unwrap_or_default();
        let words = words.as_array().cloned().unwrap_or_default();
        let table = qmp.execute("x-query-ramblock", Value::Null)?;
        let capabilities = qmp.capabilities()?.into_iter().map(|(name, _)| name).collect();
        Ok(Self {
            version: qmp.version().to_owned(),
            machine,
            accelerator: if kvm { "kvm" } else { "tcg" }.to_owned(),
            cpu,
            cpu_features: words.iter().filter_map(|word| word["features"].as_u64()).collect(),
            vcpus: cpus.len(),
            blocks: ram_blocks(table["human-readable-text"].as_str().unwrap_or_default()),
            capabilities,
        })
    }

    /// Whether a migration may miss what a running VM writes: QEMU before 9.0 leaves the TLBs of emulated CPUs as they are when it looks
    /// at what has changed (its commit 03bfc2188f, "physmem: Fix migration dirty bitmap coherency with TCG").
    #[must_use]
    pub fn misses_writes(&self) -> bool {
        self.accelerator == "tcg" && release(&self.version) < (9, 0)
    }

    /// Reads what [`super::DeviceState::offer`] wrote.
    ///
    /// # Errors
    ///
    /// [`StateError::Offer`].
    pub fn of_offer(text: &str) -> Result<Self, StateError> {
        serde_json::from_str(text).map_err(|_| StateError::Offer)
    }

    /// Whether a VM that was offered so can go on in `destination`.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`].
    pub fn offered_fits(&self, destination: &Self) -> Result<(), Mismatch> {
        let block = |row: &RamBlockRow| Block {
            id: row.id.clone(),
            len: row.used,
            page_size: row.page_size,
            gpa: None,
            first_page: 0,
        };
        let blocks: Vec<Block> = self.blocks.iter().map(block).collect();
        self.fits(&blocks, destination)
    }

    /// Whether a VM from `self` with these blocks can go on in `destination`.
    ///
    /// # Errors
    ///
    /// The first [`Mismatch`].
    pub fn fits(&self, blocks: &[Block], destination: &Self) -> Result<(), Mismatch> {
        let differs = |what: &str, source: &str, destination: &str, remedy| {
            if source == destination || source.is_empty() {
                Ok(())
            } else {
                Err(mismatch(what, source, destination, remedy))
            }
        };
        let here = destination;
        let machine = "start it with the source's -machine";
        differs("machine type", &self.machine, &here.machine, machine)?;
        let accelerator = "streams of one cannot be read by the other: use the source's -accel";
        differs("accelerator", &self.accelerator, &here.accelerator, accelerator)?;
        differs("CPU model", &self.cpu, &here.cpu, "start it with the source's -cpu")?;
        let count = |count: usize| if self.vcpus == 0 { String::new() } else { count.to_string() };
        differs("virtual CPUs", &count(self.vcpus), &count(here.vcpus), "start it with the source's -smp")?;
        let features =
            |words: &[u64]| words.iter().map(|word| format!("{word:x}")).collect::<Vec<_>>().join(".");
        let model = "name a CPU model that both hosts have, in place of host or max";
        differs("CPU features", &features(&self.cpu_features), &features(&here.cpu_features), model)?;
        // A newer QEMU reads an older one's streams of the same machine type; the other way round nothing is promised.
        if release(&here.version) < release(&self.version) {
            let remedy = "install the source's version or a newer one at the destination";
            return Err(mismatch("QEMU", &self.version, &here.version, remedy));
        }
        for block in blocks {
            let row = here.blocks.iter().find(|row| row.id == block.id);
            let name = format!("RAM block {}", block.id);
            let remedy = "give it the source's memory, devices and names of memory backends";
            match row {
                None => {
                    return Err(mismatch(
                        &name,
                        &format!("{} bytes", block.len),
                        "none of that name",
                        remedy,
                    ));
                }
                Some(row) if row.used != block.len && (block.len > row.max || row.max == row.used) => {
                    let sizes = [block.len, row.max].map(|len| format!("{len} bytes"));
                    return Err(mismatch(&name, &sizes[0], &sizes[1], remedy));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

fn mismatch(what: &str, source: &str, destination: &str, remedy: &'static str) -> Mismatch {
    let [source_has, destination_has] = [source, destination].map(str::to_owned);
    Mismatch { what: what.to_owned(), source_has, destination_has, remedy }
}

/// Major and minor: a third number is for corrections.
fn release(version: &str) -> (u32, u32) {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The rows of QEMU's table: name, page size with unit, offset, used, most, address, access.
pub(super) fn ram_blocks(table: &str) -> Vec<RamBlockRow> {
    table.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<RamBlockRow> {
    let hex = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    // From the right, as a name may have blanks in it.
    let mut fields = line.split_whitespace().rev();
    let mut next = || fields.next();
    let mut last = next()?;
    if matches!(last, "rw" | "ro") {
        last = next()?;
    }
    hex(last)?;
    let (max, used, _offset) = (hex(next()?)?, hex(next()?)?, hex(next()?)?);
    let unit = match next()? {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    let page_size = next()?.parse::<u64>().ok()?.checked_mul(unit)?;
    let mut name: Vec<&str> = fields.collect();
    name.reverse();
    Some(RamBlockRow { id: name.join(" "), page_size, used, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulated_guests_of_old_qemus_may_write_unseen() {
        let misses = |accelerator: &str, version: &str| {
            let (accelerator, version) = (accelerator.to_owned(), version.to_owned());
            Fingerprint { accelerator, version, ..Fingerprint::default() }.misses_writes()
        };
        assert!(misses("tcg", "8.2.2") && misses("tcg", "7.2.22") && misses("tcg", "what"));
        assert!(!misses("tcg", "9.0.0") && !misses("tcg", "10.0.2") && !misses("kvm", "8.1.0"));
    }
}
