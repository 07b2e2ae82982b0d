//! What an earlier ADD, ours or the reference's, left in its result for the DEL.
//!
//! The last interface of such a result is no interface: it is called `dummy` and the pod's
//! suffix. Its `mac` is the VLAN of a branch ENI in decimals, 0 for other pods; its `sandbox` is
//! the device number of the first address's ENI. The `mac` of a container's interface is the
//! route table of its address, which pods of releases before 1.20 do not have.

use std::net::IpAddr;

use vpc::{EniSlot, PodName, RouteTable, container_interface, dummy_interface};

use crate::result::{CniResult, Interface};

/// A pod's address, as a result tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PodAddress {
    /// The interface's number in the pod.
    pub(crate) nic: u8,
    pub(crate) address: IpAddr,
    pub(crate) table: RouteTable,
}

/// What a previous result says about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Previous {
    /// Nothing that we could use, and why.
    Nothing(String),
    /// Addresses of ENIs attached to the node.
    Addresses(Vec<PodAddress>),
    /// An address of a branch ENI; it is missing if the result does not have exactly one.
    Branch { vlan: u32, address: Result<IpAddr, String> },
}

/// The table by which rules are found whichever table they name.
const ANY_TABLE: RouteTable = RouteTable(0);

impl Previous {
    /// Reads what `result` says of `pod`, whose interface is `interface`.
    ///
    /// # Errors
    /// A VLAN that is no number: then nobody can say which kind of pod it is.
    pub(crate) fn read(result: Option<&CniResult>, pod: &PodName, interface: &str) -> Result<Self, String> {
        let Some(result) = result else { return Ok(Self::Nothing("there is no prevResult".to_owned())) };
        if result.interfaces.is_empty() && !result.ips.is_empty() {
            return Ok(Self::Addresses(without_interfaces(result)));
        }
        let dummy = dummy_interface(pod);
        let Some(dummy) = result.interfaces.iter().find(|entry| entry.name == dummy) else {
            return Ok(Self::Nothing(format!("prevResult has no entry {dummy}")));
        };
        let vlan: i64 =
            dummy.mac.parse().map_err(|_| format!("malformed vlanID in prevResult: {}", dummy.mac))?;
        if vlan != 0 {
            let vlan = u32::try_from(vlan).ok().filter(|vlan| *vlan <= 4094);
            let vlan = vlan.ok_or_else(|| format!("malformed vlanID in prevResult: {}", dummy.mac))?;
            return Ok(Self::Branch { vlan, address: branch_address(result, interface) });
        }
        Ok(addresses(result, dummy, interface).map_or_else(Self::Nothing, Self::Addresses))
    }

    /// The addresses that the result names, whatever kind of pod it is.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Nothing(_) => Vec::new(),
            Self::Addresses(addresses) => addresses.iter().map(|entry| entry.address).collect(),
            Self::Branch { address, .. } => address.iter().copied().collect(),
        }
    }
}

/// The oldest results have no interfaces, so the tables are those that the kernel's rules name.
fn without_interfaces(result: &CniResult) -> Vec<PodAddress> {
    let single = result.ips.iter().filter(|ip| ip.length == if ip.address.is_ipv4() { 32 } else { 128 });
    single.map(|ip| PodAddress { nic: 0, address: ip.address, table: ANY_TABLE }).collect()
}

fn addresses(result: &CniResult, dummy: &Interface, interface: &str) -> Result<Vec<PodAddress>, String> {
    let device = &dummy.sandbox;
    let device = device
        .parse()
        .map_err(|_| format!("device number in prevResult is {device:?}: expected 0 to 65535"))?;
    let mut table = RouteTable::of(EniSlot::new(0, device));
    let mut addresses = Vec::new();
    let count = result.interfaces.len().saturating_sub(1) / 2;
    for nic in 0..u8::try_from(count).unwrap_or(u8::MAX) {
        let name = container_interface(interface, nic);
        let Some(position) = result.interfaces.iter().position(|entry| entry.name == name) else { continue };
        let Ok(address) = address_of(result, position, &name) else { continue };
        let mac = &result.interfaces[position].mac;
        if !mac.is_empty() {
            let number = mac
                .parse()
                .map_err(|_| format!("route table of {name} in prevResult is {mac:?}: expected a number"))?;
            table = RouteTable::from_reply(number);
        }
        addresses.push(PodAddress { nic, address, table });
    }
    if addresses.is_empty() {
        return Err(format!("prevResult has no address on {interface}"));
    }
    Ok(addresses)
}

fn branch_address(result: &CniResult, interface: &str) -> Result<IpAddr, String> {
    let position = result.interfaces.iter().position(|entry| entry.name == interface);
    let position = position.ok_or_else(|| format!("cannot find contVethName {interface} in prevResult"))?;
    address_of(result, position, interface)
}

/// The one address on the interface at `position`.
fn address_of(result: &CniResult, position: usize, name: &str) -> Result<IpAddr, String> {
    let mut addresses = result.ips.iter().filter(|ip| ip.interface == Some(position));
    match (addresses.next(), addresses.count()) {
        (Some(ip), 0) => Ok(ip.address),
        (first, others) => {
            let count = usize::from(first.is_some()) + others;
            Err(format!("found {count} containerIPs for {name} in prevResult"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Json;
    use crate::request::version::Generation;

    fn read(text: &str) -> Result<Previous, String> {
        let json = Json::parse(text.as_bytes()).unwrap();
        let generation = Generation::of(json.field("cniVersion").map_or("0.4.0", |version| match version {
            Json::String(text) => text,
            _ => "0.4.0",
        }));
        let result = CniResult::read(&json, generation.unwrap(), "0.4.0").unwrap();
        Previous::read(Some(&result), &PodName::new("default", "sample-pod"), "eth0")
    }

    fn pod(mac: &str, dummy: &str) -> String {
        format!(
            r#"{{"cniVersion":"0.4.0","interfaces":[{{"name":"enicc21c2d7785"}},{{"name":"eth0"{mac}}},
            {{"name":"dummycc21c2d7785"{dummy}}}],"ips":[{{"version":"4","interface":1,"address":"10.0.1.31/32"}}]}}"#
        )
    }

    fn table(mac: &str, dummy: &str) -> Option<u32> {
        match read(&pod(mac, dummy)).unwrap() {
            Previous::Addresses(addresses) => Some(addresses[0].table.0),
            _ => None,
        }
    }

    #[test]
    fn the_route_table_is_that_of_the_interface_or_else_of_the_device() {
        assert_eq!(table(r#","mac":"10101""#, r#","mac":"0","sandbox":"1""#), Some(10101));
        assert_eq!(table("", r#","mac":"0","sandbox":"2""#), Some(3));
        assert_eq!(table("", r#","mac":"0","sandbox":"0""#), Some(254));
        assert_eq!(table(r#","mac":"1""#, r#","mac":"0","sandbox":"1""#), Some(254));
    }

    #[test]
    fn numbers_that_are_none_give_nothing() {
        assert_eq!(table(r#","mac":"02:00:00:00:00:01""#, r#","mac":"0","sandbox":"1""#), None);
        assert_eq!(table("", r#","mac":"0","sandbox":"x""#), None);
        assert_eq!(table("", r#","mac":"0","sandbox":"-1""#), None);
    }

    #[test]
    fn a_vlan_that_is_no_number_is_an_error() {
        assert_eq!(read(&pod("", r#","mac":"x""#)).unwrap_err(), "malformed vlanID in prevResult: x");
        assert_eq!(read(&pod("", "")).unwrap_err(), "malformed vlanID in prevResult: ");
    }

    #[test]
    fn a_branch_pod_is_known_by_its_vlan() {
        let expected = Previous::Branch { vlan: 7, address: Ok("10.0.1.31".parse().unwrap()) };
        assert_eq!(read(&pod(r#","mac":"0""#, r#","mac":"7""#)).unwrap(), expected);
    }

    #[test]
    fn what_chained_plugins_added_is_passed_over() {
        let text = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eni1"},{"name":"eth0","mac":"254"},
            {"name":"dummycc21c2d7785","mac":"0","sandbox":"0"},{"name":"veth1"},{"name":"v4if0"}],
            "ips":[{"interface":1,"address":"10.0.1.31/32"},{"interface":4,"address":"169.254.172.2/22"}]}"#;
        let Ok(Previous::Addresses(addresses)) = read(text) else { panic!("nothing") };

        assert_eq!(addresses.len(), 1);
    }

    #[test]
    fn the_oldest_results_still_name_the_address() {
        let Ok(Previous::Addresses(addresses)) =
            read(r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.1.31/32"}}"#)
        else {
            panic!("nothing")
        };

        assert_eq!(addresses[0].table, ANY_TABLE);
    }
}
