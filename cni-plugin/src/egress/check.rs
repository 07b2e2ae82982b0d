//! CHECK: compare the kernel and the lease with what ADD left.

use std::path::Path;

use datapath::egress::{self, EgressNetwork};
use datapath::kernel::Netns;

use crate::error::{CniError, Code};
use crate::request::Request;

use super::config::EgressConfig;
use super::{host_end, internal, leases, owner};

/// Serves a CHECK, which prints nothing.
pub(super) fn run(request: &Request, config: &EgressConfig) -> Result<String, CniError> {
    if !config.is_enabled {
        return Ok(String::new());
    }
    let invalid = |message: String| CniError::new(Code::INVALID_CONFIG, format!("check cmd: {message}"));
    let previous = config.previous.as_ref();
    let previous =
        previous.ok_or_else(|| invalid("prevResult is missing: it says what to compare with".to_owned()))?;
    let ipam = config.ipam().map_err(invalid)?;
    let mtu = config.mtu().map_err(invalid)?;
    let host_veth = host_end(previous, ipam).map(|end| end.name.clone());

    let owner = owner(request);
    let all = leases(request, ipam).all().map_err(internal)?;
    let lease = all.into_iter().find(|(_, other)| *other == owner);
    let different = |what: String| {
        let text = format!("check cmd: the pod's egress is not as ADD left it: {what}");
        CniError::new(Code::DIFFERENT, text)
    };
    let Some((address, _)) = lease else {
        let directory = ipam.data_dir.display();
        return Err(different(format!("{directory} holds no lease of container {}", owner.container_id)));
    };
    let Some(host_veth) = host_veth else {
        return Err(different("prevResult does not have its links".to_owned()));
    };
    let wanted = EgressNetwork {
        pod_interface: request.interface.clone(),
        address,
        block: ipam.range.block(),
        mtu: u32::try_from(mtu).map_err(|_| invalid(format!("mtu is {mtu}")))?,
    };
    let host = Netns::current().map_err(internal)?;
    let pod = Netns::open(Path::new(&request.netns)).map_err(internal)?;
    let differences = egress::check(&wanted, &host_veth, &host, &pod).map_err(internal)?;
    if differences.is_empty() {
        return Ok(String::new());
    }
    let list: Vec<String> = differences.iter().map(ToString::to_string).collect();
    Err(different(list.join("; ")))
}
