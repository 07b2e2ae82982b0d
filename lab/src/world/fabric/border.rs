//! What lies around the VPC: the internet, and a network on premises; and the router's filters
//! that stand between.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::wanted::{INTERNET_LINK, PREMISES_LINK, VPC_MTU};
use crate::world::TOOL_DEADLINE;
use crate::world::place::Place;

/// The internet's echo service, on [`crate::world::ECHO_PORT`] for TCP and UDP.
pub const INTERNET_ECHO: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The same service of a host that has IPv6 only.
pub const INTERNET_ECHO_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0x113, 0, 0, 0, 0x10);
/// The echo service on premises; that network is 192.168.0.0/16.
pub const PREMISES_ECHO: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 7);
/// The source that the internet sees of packets which the NAT gateway has translated.
pub const NAT_GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The internet's end of its link.
const INTERNET_SIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Both ends of that link in IPv6, the VPC's first.
const INTERNET_SIDES_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0x198, 0x51, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0x198, 0x51, 0, 0, 0, 2),
];
/// Both ends of the line to the premises, the VPC's first.
const PREMISES_SIDES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];

/// The router and what it leads to.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) vpc: Place,
    pub(super) internet: Place,
    pub(super) premises: Place,
}

/// Makes the three places and joins them; their names begin with `prefix`.
///
/// # Errors
/// The kernel's, or those of `ip` and `nft`.
pub(super) async fn lay(prefix: &str) -> Result<Places> {
    let make = |name: &str| -> Result<Place> {
        let name = format!("{prefix}-{name}");
        let place = Place::create(&name, &Path::new("/run/netns").join(&name), None)?;
        for family in ["ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter"] {
            place.sysctl(family, "0")?;
        }
        place.sysctl("ipv6/conf/default/accept_ra", "0")?;
        Ok(place)
    };
    let places = Places { vpc: make("vpc")?, internet: make("internet")?, premises: make("premises")? };
    let Places { vpc, internet, premises } = &places;
    vpc.sysctl("ipv4/ip_forward", "1")?;
    vpc.sysctl("ipv6/conf/all/forwarding", "1")?;
    // Neighbours of the same subnet sit behind the router: it answers ARP for them.
    vpc.sysctl("ipv4/conf/all/proxy_arp", "1")?;

    let [vpc_v6, internet_v6] = INTERNET_SIDES_V6;
    let [vpc_side, premises_side] = PREMISES_SIDES;
    vpc.ip_batch(&format!(
        "link set lo up\n\
         link add {INTERNET_LINK} type veth peer name vpc netns {}\n\
         link set {INTERNET_LINK} up\n\
         addr add {NAT_GATEWAY}/30 dev {INTERNET_LINK}\n\
         addr add {vpc_v6}/64 dev {INTERNET_LINK} nodad\n\
         link add {PREMISES_LINK} mtu {VPC_MTU} type veth peer name vpc mtu {VPC_MTU} netns {}\n\
         link set {PREMISES_LINK} up\n\
         addr add {vpc_side}/30 dev {PREMISES_LINK}\n",
        internet.name(),
        premises.name(),
    ))
    .await?;
    internet
        .ip_batch(&format!(
            "link set lo up\n\
             link set vpc up\n\
             addr add {INTERNET_SIDE}/30 dev vpc\n\
             addr add {internet_v6}/64 dev vpc nodad\n\
             addr add {INTERNET_ECHO}/32 dev lo\n\
             addr add {INTERNET_ECHO_V6}/128 dev lo nodad\n\
             route add default via {NAT_GATEWAY} dev vpc src {INTERNET_ECHO}\n\
             route add default via {vpc_v6} dev vpc src {INTERNET_ECHO_V6}\n"
        ))
        .await?;
    premises
        .ip_batch(&format!(
            "link set lo up\n\
             link set vpc up\n\
             addr add {premises_side}/30 dev vpc\n\
             addr add {PREMISES_ECHO}/32 dev lo\n\
             route add default via {vpc_side} dev vpc src {PREMISES_ECHO}\n"
        ))
        .await?;
    vpc.ip_batch(&format!(
        "route add default via {INTERNET_SIDE} dev {INTERNET_LINK}\n\
         route add default via {internet_v6} dev {INTERNET_LINK}\n\
         route add 192.168.0.0/16 via {premises_side} dev {PREMISES_LINK}\n"
    ))
    .await?;
    vpc.nft_load(VPC_FILTER).await?;
    carry(vpc, &[INTERNET_LINK, PREMISES_LINK]).await?;
    Ok(places)
}

/// Waits until links whose other ends have just come up carry packets: the kernel takes note of
/// that in its own time, and until then drops in silence what is sent.
///
/// # Errors
/// They do not, or `ip` fails.
pub(super) async fn carry(place: &Place, links: &[&str]) -> Result<()> {
    let began = Instant::now();
    while !links.is_empty() {
        let shown = place.ip(&["-j", "link", "show", "up"]).await?;
        let is_up = |name: &&str| {
            let mut all = shown.as_array().into_iter().flatten();
            all.any(|link| link["ifname"] == **name && link["operstate"] == "UP")
        };
        if links.iter().all(is_up) {
            break;
        }
        ensure!(began.elapsed() < TOOL_DEADLINE, "links of {} carry nothing: {links:?}", place.name());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// The source/destination check, and the internet gateway that translates only what has a public
/// address. The router's own answers (unreachable, too big) leave like anybody's packets, to
/// addresses that the ENI owns.
const VPC_FILTER: &str = r#"
table inet fabric {
  set owned { type ifname . ipv4_addr; flags interval; }
  set owned_v6 { type ifname . ipv6_addr; flags interval; }
  set unchecked { type ifname; }
  set public { type ipv4_addr; }
  counter spoofed { }
  counter misdelivered { }
  counter not_public { }
  chain from_eni {
    type filter hook prerouting priority raw; policy accept;
    iifname { "internet", "premises", "lo" } accept
    iifname . ip saddr @owned accept
    iifname . ip6 saddr @owned_v6 accept
    ip6 saddr { ::, fe80::/10 } accept
    iifname @unchecked accept
    counter name spoofed drop
  }
  chain to_eni {
    type filter hook postrouting priority raw; policy accept;
    oifname { "internet", "premises", "lo" } accept
    oifname . ip daddr @owned accept
    oifname . ip6 daddr @owned_v6 accept
    ip6 daddr { fe80::/10, ff00::/8 } accept
    oifname @unchecked accept
    counter name misdelivered drop
  }
  chain to_internet {
    type filter hook forward priority filter; policy accept;
    oifname "internet" meta nfproto ipv4 ip saddr != @public jump without_public_address
  }
  chain without_public_address {
    counter name not_public drop
  }
}
"#;

/// The transaction that has a NAT gateway translate what has no public address, or that lets such
/// packets be lost again.
pub(super) fn nat_gateway(is_on: bool) -> String {
    let begin = "add chain inet fabric translate { type nat hook postrouting priority srcnat; }\n\
                 flush chain inet fabric translate\n\
                 flush chain inet fabric without_public_address\n";
    let end = match is_on {
        true => format!(
            "add rule inet fabric translate oifname {INTERNET_LINK} ip saddr != @public \
             snat ip to {NAT_GATEWAY}\n"
        ),
        false => "delete chain inet fabric translate\n\
                  add rule inet fabric without_public_address counter name not_public drop\n"
            .to_owned(),
    };
    format!("{begin}{end}")
}
