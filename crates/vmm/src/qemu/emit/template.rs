//! Many clones of one host over one file: each maps the image privately, so clean pages are shared.

use super::super::error::QemuError;
use super::super::qmp::Qmp;
use super::super::state::DeviceState;
use super::super::stream::{
    Block, BlockPlan, Command, PAGE_BYTES, RamWriter, with_ignore_shared, write_command, write_description,
    write_end,
};
use super::{EmitOptions, check, set_up};
use crate::lazy::LazyImage;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The stream that all clones of a template are started with: device state and the small blocks.
#[derive(Debug)]
pub struct TemplateVm {
    stream: Vec<u8>,
    state: DeviceState,
}

/// The value of `-object` that gives a clone its memory from the image: private, so that what it writes stays its own.
/// The machine takes it by `-machine memory-backend=ID`, where the ID is the block's name.
///
/// The file must not change as long as a clone lives.
#[must_use]
pub fn template_backend(image: &Path, block: &Block) -> String {
    let path = image.to_string_lossy().replace(',', ",,");
    let offset = u64::from(block.first_page) * PAGE_BYTES;
    // rom=off: QEMU would take memory that is opened read-only for ROM.
    format!(
        "memory-backend-file,id={},size={},mem-path={path},offset={offset},share=off,readonly=on,rom=off",
        block.id, block.len
    )
}

impl TemplateVm {
    /// Makes the stream. `image` must be complete in its small blocks; the largest is the template.
    ///
    /// # Errors
    ///
    /// [`QemuError::Refused`] for VMs with several large blocks, or pages that are not here.
    pub fn new(image: &LazyImage, state: &DeviceState) -> Result<Self, QemuError> {
        let main = Self::main_block(state);
        let mut stream = with_ignore_shared(&state.prefix);
        let mut writer = RamWriter::new(state.section, &state.blocks);
        writer.start(&mut stream, &BlockPlan::default(), true);
        stream.extend_from_slice(&state.early);
        writer.part(&mut stream);
        for block in state.blocks.iter().filter(|block| block.id != main.id) {
            if block.len > SMALL_BYTES_MAX {
                return Err(QemuError::refused(format!(
                    "RAM block {} is large: only one such block can be a template",
                    block.id
                )));
            }
            for page in block.page_range() {
                match image.page(page) {
                    Some(bytes) => writer.page(&mut stream, page, bytes),
                    None => {
                        return Err(QemuError::refused(format!("page {page} of its template is missing")));
                    }
                }
            }
        }
        writer.close(&mut stream);
        if state.switchover_start {
            write_command(&mut stream, &Command::SwitchoverStart);
        }
        writer.end(&mut stream);
        writer.close(&mut stream);
        stream.extend_from_slice(&state.devices);
        write_end(&mut stream);
        write_description(&mut stream, &state.description);
        Ok(Self { stream, state: state.clone() })
    }

    /// The block that the template file holds: the largest.
    ///
    /// # Panics
    ///
    /// If the state has no blocks, which [`DeviceState::decode`] refuses.
    #[must_use]
    pub fn main_block(state: &DeviceState) -> &Block {
        state.blocks.iter().max_by_key(|block| block.len).expect("a VM has memory")
    }

    /// Loads a waiting QEMU that has the template for memory, and returns when its VM runs (or stands, if the source
    /// stood or QEMU was started with `-S`).
    ///
    /// # Errors
    ///
    /// As [`super::Emitter::start`].
    pub fn load(
        &self,
        qmp: &mut Qmp,
        image: &LazyImage,
        options: &EmitOptions,
    ) -> Result<Duration, QemuError> {
        let start = Instant::now();
        check(qmp, image, &self.state)?;
        set_up(qmp, false, true)?;
        let path = qmp.path().to_owned();
        let (mut ours, theirs) = UnixStream::pair().map_err(QemuError::io("make a socket for", &path))?;
        ours.set_write_timeout(Some(options.stall_within))
            .map_err(QemuError::io("set up a socket for", &path))?;
        qmp.send_fd("scatter-in", &theirs)?;
        drop(theirs);
        qmp.execute("migrate-incoming", json!({"uri": "fd:scatter-in"}))?;
        // If QEMU refuses the stream in the middle, its own reason is told below.
        let written = ours.write_all(&self.stream).and_then(|()| ours.shutdown(std::net::Shutdown::Write));
        super::await_status(qmp, &["completed"], options.stall_within)?;
        written.map_err(QemuError::io("write a template's stream to", &path))?;
        qmp.execute("query-status", Value::Null)?;
        Ok(start.elapsed())
    }
}

/// Firmware, option ROMs, tables, video memory.
const SMALL_BYTES_MAX: u64 = 64 << 20;
