//! Names of VMs and transfers become file names: only harmless ones pass.

use super::error::StoreError;

/// Longest name in bytes: `NAME_MAX` (255) less the longest suffix that the store appends.
pub(super) const NAME_BYTES_MAX: usize = 200;

/// Checks that `name` can stand in a file name of the store and nowhere else.
pub(super) fn check(what: &'static str, name: &str) -> Result<(), StoreError> {
    let bad = |reason| Err(StoreError::BadName { what, name: name.chars().take(80).collect(), reason });
    if name.is_empty() {
        return bad("it is empty");
    }
    if name.len() > NAME_BYTES_MAX {
        return bad("it is longer than 200 bytes");
    }
    if name.contains(['/', '\\']) {
        return bad("it contains a path separator");
    }
    if name.chars().any(char::is_control) {
        return bad("it contains a control character");
    }
    // Covers ".", ".." and the store's own ".scatter".
    if name.starts_with('.') {
        return bad("it starts with a dot");
    }
    // A shell would take it for an option; a space there hides the end of a name.
    if name.starts_with('-') || name.starts_with(' ') || name.ends_with(' ') {
        return bad("it starts with a dash, or starts or ends with a space");
    }
    Ok(())
}
