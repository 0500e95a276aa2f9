//! What of a VM's configuration a clone must have of its own.

use super::{Api, FirecrackerError};
use serde_json::{Value, json};

/// What the metadata service told at the source, in a configuration that [`Api::configuration`] gave.
const METADATA: &str = "mmds-data";

/// The devices that clones on one host cannot share, as the VM's configuration tells them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Devices {
    /// Ids of its network interfaces.
    pub interfaces: Vec<String>,
    /// Whether it has a vsock.
    pub vsock: bool,
    /// What its metadata service told, if it has one: no snapshot holds that.
    metadata: Option<Value>,
}

impl Devices {
    /// Reads what [`Api::configuration`] gave; what it does not tell is not there.
    ///
    /// # Errors
    ///
    /// In words: it is no JSON, or an interface has no id.
    pub fn parse(configuration: &[u8]) -> Result<Self, String> {
        let configuration: Value =
            serde_json::from_slice(configuration).map_err(|error| format!("it is no JSON: {error}"))?;
        let interfaces =
            configuration["network-interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
        let id = |interface: &Value| {
            interface["iface_id"].as_str().map(str::to_owned).ok_or("a network interface has no iface_id")
        };
        let told = &configuration[METADATA];
        Ok(Self {
            interfaces: interfaces.iter().map(id).collect::<Result<_, _>>()?,
            vsock: configuration["vsock"].is_object(),
            metadata: configuration["mmds-config"]
                .is_object()
                .then(|| if told.is_object() { told.clone() } else { json!({}) }),
        })
    }

    /// What a clone's metadata service is to tell, if it has one: what the source's told, and under `scatter` who this is.
    #[must_use]
    pub fn metadata_of(&self, name: &str, number: u32) -> Option<Value> {
        let mut metadata = self.metadata.clone()?;
        metadata["scatter"] = json!({ "clone": number, "name": name });
        Some(metadata)
    }
}

impl Api {
    /// The VM's configuration and, beside it, what its metadata service tells, as JSON: what [`Devices`] are read from.
    ///
    /// # Errors
    ///
    /// Firecracker refuses.
    pub fn configuration(&self) -> Result<Vec<u8>, FirecrackerError> {
        let mut configuration = self.request("GET", "/vm/config", None)?;
        if configuration["mmds-config"].is_object() {
            configuration[METADATA] = self.request("GET", "/mmds", None)?;
        }
        Ok(configuration.to_string().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_from_a_configuration_or_refused() {
        let config = br#"{"drives":[],"network-interfaces":[{"iface_id":"eth0","host_dev_name":"tap0"}],
            "vsock":{"guest_cid":3,"uds_path":"/run/v"},"mmds-config":null,"entropy":null}"#;
        let devices = Devices::parse(config).expect("a configuration");
        assert_eq!((devices.interfaces.as_slice(), devices.vsock), (&["eth0".to_owned()][..], true));
        assert_eq!(devices.metadata_of("a", 1), None);
        assert_eq!(Devices::parse(b"{}").expect("no devices"), Devices::default());
        assert!(Devices::parse(b"{").is_err() && Devices::parse(br#"{"network-interfaces":[{}]}"#).is_err());
    }

    #[test]
    fn a_clones_metadata_is_the_sources_and_its_identity() {
        let config = br#"{"mmds-config":{"version":"V2"},"mmds-data":{"role":"web"}}"#;
        let metadata = Devices::parse(config).expect("a configuration").metadata_of("web-h1-2", 7);
        let right = json!({ "role": "web", "scatter": { "clone": 7, "name": "web-h1-2" } });
        assert_eq!(metadata, Some(right));
    }
}
