//! Whether this process can make a lab, and how any user's process comes to.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{AccessFlags, access};

use super::LabError;
use super::namespace::{NAMESPACES, find_program};

/// Set in the environment of a process that was started again in a user namespace, so that it does not try twice.
const MARK: &str = "SCATTER_LAB_NAMESPACE";

/// What the lab runs, and the Debian package of each.
const PROGRAMS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("tc", "iproute2"), ("nft", "nftables"), ("ethtool", "ethtool")];

/// The bits of `capabilities(7)`.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// What a process needs to do in a user namespace of its own before it may count on a lab; `"$@"` is run then.
const ENTER: &str = "mount -t tmpfs -o mode=755 tmpfs /run && exec \"$@\"";

/// What a lab does first: tried once before this process gives itself to a user namespace.
const TRIAL: &str = "ip netns add trial && ip -n trial link add br0 type bridge && ip netns del trial";

/// Finds out what is missing for a lab in this process, without changing anything.
pub(super) fn available() -> Result<(), LabError> {
    check_programs()?;
    if has_rights() {
        return Ok(());
    }
    Err(LabError::MissingRight {
        reason: "run as root, or in a user namespace as `scatter-lab enter -- COMMAND` makes one".to_owned(),
    })
}

/// Makes sure that a program's process may make labs, whoever started it: if it may not already, it is started again,
/// with the same arguments, as root of a user namespace of its own (with a network, a mount namespace and an empty
/// `/run`). To be called first in `main`. Returns only if nothing had to be done, or if it cannot be: then nothing
/// has changed, and the program can go on without a lab.
///
/// Everything that a lab makes vanishes with the process then. What the user's `/run` holds is not seen.
///
/// # Errors
/// [`LabError::MissingProgram`] for a missing package; [`LabError::MissingRight`] if the system forbids user
/// namespaces, with the setting that does where it is known.
pub fn reexec_in_user_namespace_if_needed() -> Result<(), LabError> {
    check_programs()?;
    if has_rights() {
        return Ok(());
    }
    let program =
        std::env::current_exe().map_err(|source| LabError::system("find this program's file", source))?;
    let mut arguments = vec![program.into_os_string()];
    arguments.extend(std::env::args_os().skip(1));
    Err(exec_in_user_namespace(&arguments))
}

/// Becomes `arguments` (a program and its arguments), run as root of a user namespace; see
/// [`reexec_in_user_namespace_if_needed`]. Returns only an error.
#[must_use = "it returns only if it failed"]
pub fn exec_in_user_namespace(arguments: &[std::ffi::OsString]) -> LabError {
    if std::env::var_os(MARK).is_some() {
        let reason =
            "this process is in a user namespace of the lab's already and still lacks rights".to_owned();
        return LabError::MissingRight { reason };
    }
    if let Err(error) = try_user_namespace() {
        return error;
    }
    let mut enter = unshare();
    enter.args(["sh", "-c", ENTER, "sh"]).args(arguments).env(MARK, "1");
    LabError::system("run unshare", enter.exec())
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount"]);
    command
}

/// Does in a child what the process itself cannot undo.
fn try_user_namespace() -> Result<(), LabError> {
    let mut trial = unshare();
    trial.args(["sh", "-c", ENTER, "sh", "sh", "-c", &format!("PATH=$PATH:/usr/sbin:/sbin; {TRIAL}")]);
    let result = trial.stdin(Stdio::null()).output();
    let result = result.map_err(|source| LabError::system("run unshare (package util-linux)", source))?;
    if result.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&result.stderr).trim().to_owned();
    let reason = match forbidding_setting() {
        Some(setting) => format!("this system forbids user namespaces ({setting}); run as root instead"),
        None => format!("a user namespace did not work ({message}); run as root instead"),
    };
    Err(LabError::MissingRight { reason })
}

/// The settings that distributions use to forbid user namespaces.
fn forbidding_setting() -> Option<String> {
    let settings = [
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
    ];
    let is_set = |(name, forbids): &(&str, &str)| {
        let text = std::fs::read_to_string(Path::new("/proc/sys").join(name));
        text.is_ok_and(|value| value.trim() == *forbids)
    };
    let (name, value) = settings.into_iter().find(is_set)?;
    Some(format!("sysctl {}={value}", name.replace('/', ".")))
}

fn check_programs() -> Result<(), LabError> {
    match PROGRAMS.into_iter().find(|(program, _)| find_program(program).is_none()) {
        Some((program, package)) => Err(LabError::MissingProgram { program, package }),
        None => Ok(()),
    }
}

/// Whether this process has the capabilities, and a place for named namespaces.
fn has_rights() -> bool {
    let needed = (1u64 << CAP_NET_ADMIN) | (1u64 << CAP_SYS_ADMIN);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let place = Path::new(NAMESPACES);
    let place = if place.exists() { place } else { Path::new("/run") };
    effective & needed == needed && access(place, AccessFlags::W_OK).is_ok()
}
