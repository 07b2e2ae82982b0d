//! Gateways: the VPC router of a subnet, and the made-up one that a pod sees.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The VPC router's address on every IPv6 subnet.
pub const IPV6_VPC_ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);

/// The VPC router of a subnet: over IPv4 its network address plus one, over IPv6 the same
/// link-local address everywhere.
///
/// Source: VPC User Guide, "Subnet CIDR blocks".
#[must_use]
pub fn subnet_gateway(subnet: IpNet) -> IpAddr {
    match subnet {
        IpNet::V4(subnet) => Ipv4Addr::from(u32::from(subnet.network()).wrapping_add(1)).into(),
        IpNet::V6(_) => IPV6_VPC_ROUTER.into(),
    }
}

/// The gateway that a pod's default route names on its interface number `nic` (from 0), in the
/// family of `address`: 169.254.1.1 or fe80::1, and counting up.
///
/// No link carries it; the pod has a permanent neighbour entry that leads to the host's end.
#[must_use]
pub fn pod_gateway(address: IpAddr, nic: u8) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::new(169, 254, 1, nic.saturating_add(1)).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, u16::from(nic) + 1).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subnet_router_is_the_first_address_after_the_network_or_the_link_local_one() {
        for (subnet, router) in
            [("10.0.1.20/24", "10.0.1.1"), ("10.0.0.0/20", "10.0.0.1"), ("2001:db8:1:1::/64", "fe80:ec2::1")]
        {
            assert_eq!(subnet_gateway(subnet.parse().unwrap()).to_string(), router, "{subnet}");
        }
    }

    #[test]
    fn each_interface_of_a_pod_has_a_gateway_of_its_own() {
        let v4 = IpAddr::from(Ipv4Addr::new(10, 0, 1, 7));
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);

        assert_eq!(pod_gateway(v4, 0).to_string(), "169.254.1.1");
        assert_eq!(pod_gateway(v4, 3).to_string(), "169.254.1.4");
        assert_eq!(pod_gateway(v6, 0).to_string(), "fe80::1");
        assert_eq!(pod_gateway(v6, 1).to_string(), "fe80::2");
    }
}
