//! A migration's configuration for one clone: what names files and devices of the host must be the clone's own.

use super::CloudHypervisorError;
use serde_json::{Value, json};
use std::path::Path;

/// Names in the clone's folder of what its guest writes, and of its sockets.
pub const SERIAL: &str = "serial.log";
const CONSOLE: &str = "console.log";

/// The configuration with serial port and console, if they were files or sockets, and the vsock in the clone's own folder, and with
/// other taps where `tap` gives one for an interface's id. All else, disks among it, stays as it was.
///
/// # Errors
///
/// [`CloudHypervisorError::Config`]: it is no configuration. [`CloudHypervisorError::Tap`]: `tap` refuses.
pub fn personal(
    config: &[u8],
    dir: &Path,
    tap: &dyn Fn(&str) -> Result<Option<String>, String>,
) -> Result<Vec<u8>, CloudHypervisorError> {
    let odd = CloudHypervisorError::Config;
    let mut whole: Value = serde_json::from_slice(config).map_err(|_| odd("it is no JSON"))?;
    let vm = &mut whole["vm_config"];
    if !vm.is_object() {
        return Err(odd("it has no vm_config"));
    }
    for (device, name) in [("serial", SERIAL), ("console", CONSOLE)] {
        for kind in ["file", "socket"] {
            if let Some(path) =
                vm.get_mut(device).and_then(|device| device.get_mut(kind)).filter(|it| it.is_string())
            {
                *path = json!(dir.join(name).with_extension(if kind == "file" { "log" } else { "sock" }));
            }
        }
    }
    if let Some(socket) = vm.get_mut("vsock").and_then(|vsock| vsock.get_mut("socket")) {
        *socket = json!(dir.join("vsock.sock"));
    }
    for interface in vm.get_mut("net").and_then(Value::as_array_mut).into_iter().flatten() {
        let id = interface["id"].as_str().unwrap_or_default().to_owned();
        if let Some(tap) = tap(&id).map_err(CloudHypervisorError::Tap)? {
            interface["tap"] = json!(tap);
        }
    }
    Ok(whole.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_hosts_is_changed() {
        let config = json!({
            "memory_manager_data": { "guest_ram_mappings": [1] },
            "vm_config": {
                "serial": { "mode": "File", "file": "/src/serial", "socket": null },
                "console": { "mode": "Off", "file": null },
                "vsock": { "cid": 3, "socket": "/src/vsock" },
                "net": [{ "id": "net0", "tap": "tap0", "mac": "m" }, { "id": "net1", "tap": "tap1" }],
                "disks": [{ "path": "/images/root" }],
            },
        });
        let tap = |id: &str| Ok((id == "net0").then(|| "fc7".to_owned()));
        let own = personal(config.to_string().as_bytes(), Path::new("/c/1"), &tap).expect("a configuration");
        let own: Value = serde_json::from_slice(&own).expect("JSON");
        let mut right = config;
        right["vm_config"]["serial"]["file"] = json!("/c/1/serial.log");
        right["vm_config"]["vsock"]["socket"] = json!("/c/1/vsock.sock");
        right["vm_config"]["net"][0]["tap"] = json!("fc7");
        assert_eq!(own, right);
        assert!(
            personal(b"{}", Path::new("/"), &tap).is_err() && personal(b"", Path::new("/"), &tap).is_err()
        );
    }
}
