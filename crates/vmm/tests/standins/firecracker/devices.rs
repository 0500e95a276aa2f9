//! Devices in name only: what the host must have for them is really taken, so that two clones cannot have the same.

use crate::api::{NetworkOverride, VsockOverride};
use crate::common::words;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// A vsock, as the API has it.
#[derive(Deserialize, Serialize, Clone)]
pub(crate) struct Vsock {
    guest_cid: u32,
    uds_path: String,
}

/// What a state file has beside the machine.
#[derive(Deserialize, Serialize, Default)]
pub(crate) struct Devices {
    interfaces: Vec<NetworkOverride>,
    vsock: Option<Vsock>,
    /// The metadata service's configuration, `null` without one.
    pub(crate) mmds: Value,
    /// What it tells: in no snapshot.
    #[serde(skip)]
    pub(crate) metadata: Value,
    /// A socket for each device that is in use: a tap's has the tap's name.
    #[serde(skip)]
    held: Vec<UnixListener>,
}

impl Devices {
    pub(crate) fn config(&self) -> Value {
        json!({ "network-interfaces": self.interfaces, "vsock": self.vsock, "mmds-config": self.mmds })
    }

    pub(crate) fn add_interface(&mut self, interface: NetworkOverride) -> Result<(), String> {
        // A tap has one user; so has a name of an abstract socket.
        let name = format!("standin-tap-{}", interface.host_dev_name);
        let address = SocketAddr::from_abstract_name(name).map_err(words)?;
        let held = UnixListener::bind_addr(&address)
            .map_err(|_| format!("Open tap device failed: Resource busy: {}", interface.host_dev_name))?;
        self.held.push(held);
        println!("interface {} is tap {}", interface.iface_id, interface.host_dev_name);
        self.interfaces.push(interface);
        Ok(())
    }

    pub(crate) fn add_vsock(&mut self, vsock: Vsock) -> Result<(), String> {
        let held =
            UnixListener::bind(&vsock.uds_path).map_err(|error| format!("Error binding vsock: {error}"))?;
        self.held.push(held);
        println!("vsock {} is {}", vsock.guest_cid, vsock.uds_path);
        self.vsock = Some(vsock);
        Ok(())
    }

    /// The devices of a snapshot, some of them elsewhere on this host.
    pub(crate) fn restore(
        &mut self,
        saved: Self,
        network: &[NetworkOverride],
        vsock: Option<&VsockOverride>,
    ) -> Result<(), String> {
        let known = |over: &&NetworkOverride| saved.interfaces.iter().any(|it| it.iface_id == over.iface_id);
        if let Some(over) = network.iter().find(|over| !known(over)) {
            return Err(format!("Unknown Network Device: {} {}", over.iface_id, over.host_dev_name));
        }
        for interface in saved.interfaces {
            let over = network.iter().find(|over| over.iface_id == interface.iface_id);
            self.add_interface(over.cloned().unwrap_or(interface))?;
        }
        match (saved.vsock, vsock) {
            (None, Some(over)) => return Err(format!("Unknown Vsock Device: {}", over.uds_path)),
            (Some(saved), over) => {
                let uds_path = over.map_or(saved.uds_path, |over| over.uds_path.clone());
                self.add_vsock(Vsock { uds_path, ..saved })?;
            }
            (None, None) => {}
        }
        self.mmds = saved.mmds;
        Ok(())
    }
}
