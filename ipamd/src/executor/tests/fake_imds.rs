//! Instance metadata as a map that the test edits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ec2::{EniRecord, Metadata, Metadatum};

/// Metadata by path. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct FakeImds(Arc<Mutex<BTreeMap<String, String>>>);

impl FakeImds {
    /// Shows these ENIs, which are attached, and no others.
    pub(super) fn show(&self, enis: &[EniRecord]) {
        let mut tree = BTreeMap::new();
        let mut macs = String::new();
        for eni in enis {
            macs.push_str(&format!("{}/\n", eni.mac));
            let mut put = |leaf: &str, value: String| {
                tree.insert(format!("/latest/meta-data/network/interfaces/macs/{}/{leaf}", eni.mac), value);
            };
            let lines = |items: Vec<String>| items.join("\n");
            put("interface-id", eni.id.to_string());
            put("subnet-id", eni.subnet.to_string());
            put("subnet-ipv4-cidr-block", "10.0.1.0/24".to_owned());
            put("device-number", eni.attachment.as_ref().unwrap().slot.device.0.to_string());
            let own = eni.primary_ip.into_iter().chain(eni.secondary_ips.iter().copied());
            put("local-ipv4s", lines(own.map(|ip| ip.to_string()).collect()));
            put("ipv4-prefix", lines(eni.prefixes.iter().map(ToString::to_string).collect()));
        }
        tree.insert("/latest/meta-data/network/interfaces/macs".to_owned(), macs);
        *self.0.lock().unwrap() = tree;
    }
}

impl Metadata for FakeImds {
    fn get<'a>(&'a self, path: &'a str) -> Metadatum<'a> {
        let found = self.0.lock().unwrap().get(path).filter(|text| !text.is_empty()).cloned();
        Box::pin(async move { Ok(found) })
    }
}
