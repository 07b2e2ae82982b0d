//! CHECK: compare the kernel with what ADD reported.

use std::path::Path;

use datapath::kernel::Netns;

use crate::add::wanted;
use crate::error::{CniError, Code};
use crate::log::Journal;
use crate::previous::Previous;
use crate::request::{NetworkConfig, PodArgs, Request};

/// Serves a CHECK, which prints nothing.
pub(crate) fn run(
    request: &Request,
    config: &NetworkConfig,
    journal: &mut Journal,
) -> Result<String, CniError> {
    let internal = |message| CniError::new(Code::INTERNAL, format!("check cmd: {message}"));
    let args = PodArgs::parse(&request.args)
        .map_err(|error| internal(format!("failed to load k8s config from args: {error}")))?;
    journal.fact("pod", &args.pod);
    if config.previous.is_none() {
        return Err(CniError::new(
            Code::INVALID_CONFIG,
            "check cmd: prevResult is missing: it says what to compare with",
        ));
    }
    let addresses = match Previous::read(config.previous.as_ref(), &args.pod, &request.interface) {
        Ok(Previous::Addresses(addresses)) => addresses,
        Ok(Previous::Nothing(why)) | Err(why) => {
            return Err(CniError::new(Code::INVALID_CONFIG, format!("check cmd: {why}")));
        }
        Ok(Previous::Branch { vlan, .. }) => {
            let message = format!("a pod with a branch ENI (VLAN {vlan}) cannot be checked by this release");
            return Err(CniError::new(Code::NOT_SERVED, format!("check cmd: {message}")));
        }
    };
    let wanted = wanted(request, config, &args.pod, addresses);
    let pod = Netns::open(Path::new(&request.netns)).map_err(|error| internal(error.to_string()))?;
    let host = Netns::current().map_err(|error| internal(error.to_string()))?;
    let differences =
        datapath::pod::check(&wanted, &host, &pod).map_err(|error| internal(error.to_string()))?;
    if differences.is_empty() {
        return Ok(String::new());
    }
    let list: Vec<String> = differences.iter().map(ToString::to_string).collect();
    Err(CniError::new(
        Code::DIFFERENT,
        format!("check cmd: the pod's network is not as ADD left it: {}", list.join("; ")),
    ))
}
