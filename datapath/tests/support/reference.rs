//! The packet filter as amazon-vpc-cni-k8s sets it up, rule by rule, and rules of others around
//! it. Shell scripts of `iptables` and `nft` commands; nothing of ours takes part.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, and those of other crates too")]

use std::fmt::Write;

/// A daemon of the reference with its options, on a node of IPv4.
#[derive(Debug, Clone)]
pub struct Reference {
    /// The front end that its `iptables` is: `iptables-legacy` or `iptables-nft`.
    pub iptables: &'static str,
    pub node_port: bool,
    pub external_snat: bool,
    /// Whether it decides about marks in nftables; else in iptables.
    pub marks_in_nftables: bool,
    pub mark: u32,
    pub prefix: &'static str,
    pub node: String,
    pub vpc: Vec<String>,
    pub excluded: Vec<String>,
}

impl Reference {
    /// The defaults of its manifest, on the node of address `node` in the VPC `vpc`.
    pub fn new(iptables: &'static str, node: &str, vpc: &str) -> Self {
        Self {
            iptables,
            node_port: true,
            external_snat: false,
            // As it decides itself: by the version that its iptables tells.
            marks_in_nftables: !iptables.contains("legacy"),
            mark: 0x80,
            prefix: "eni",
            node: node.to_owned(),
            vpc: vec![vpc.to_owned()],
            excluded: Vec::new(),
        }
    }

    /// What it does at its start on a node that has nothing of it, but for rules of routing.
    pub fn script(&self) -> String {
        let mut script = Script::new(self.iptables);
        self.translation(&mut script);
        self.primary_eni(&mut script);
        match (self.external_snat, self.marks_in_nftables) {
            (true, _) => {}
            (false, true) => script.0 += &self.marks_in_nftables(),
            (false, false) => self.marks(&mut script),
        }
        script.0
    }

    fn translation(&self, script: &mut Script) {
        let Self { node, .. } = self;
        script.rule("nat -N AWS-SNAT-CHAIN-0");
        if self.external_snat {
            return;
        }
        script.rule("nat -A POSTROUTING -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-0");
        for (blocks, comment) in [(&self.vpc, "AWS SNAT CHAIN"), (&self.excluded, "AWS SNAT CHAIN EXCLUSION")]
        {
            for block in blocks {
                let to = to(block);
                script.rule(&format!(
                    "nat -I AWS-SNAT-CHAIN-0 1 {to}-m comment --comment '{comment}' -j RETURN"
                ));
            }
        }
        script.rule(&format!(
            "nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment 'AWS, SNAT' -m addrtype ! --dst-type LOCAL \
             -j SNAT --to-source {node} --random-fully"
        ));
    }

    fn primary_eni(&self, script: &mut Script) {
        let Self { mark, prefix, .. } = self;
        let comment = "-m comment --comment 'AWS, primary ENI'";
        if self.node_port {
            script.rule(&format!(
                "mangle -A PREROUTING {comment} -i eth0 -m addrtype --dst-type LOCAL --limit-iface-in \
                 -j CONNMARK --set-mark {mark:#x}/{mark:#x}"
            ));
        }
        let mut restore = |links: &str| {
            script.rule(&format!(
                "mangle -A PREROUTING {comment} -i {links}+ -j CONNMARK --restore-mark --mask {mark:#x}"
            ));
        };
        if self.node_port || !self.external_snat {
            restore(prefix);
        }
        if self.node_port {
            restore("vlan");
        }
    }

    fn marks(&self, script: &mut Script) {
        let Self { mark, prefix, .. } = self;
        let comment = "-m comment --comment 'AWS, CONNMARK'";
        script.rule("nat -N AWS-CONNMARK-CHAIN-0");
        script.rule(&format!(
            "nat -A PREROUTING -i {prefix}+ -m comment --comment 'AWS, outbound connections' -j AWS-CONNMARK-CHAIN-0"
        ));
        for block in self.vpc.iter().chain(&self.excluded) {
            let to = to(block);
            script.rule(&format!(
                "nat -I AWS-CONNMARK-CHAIN-0 1 {to}-m comment --comment 'AWS CONNMARK CHAIN' -j RETURN"
            ));
        }
        script.rule(&format!("nat -A PREROUTING {comment} -j CONNMARK --restore-mark --mask {mark:#x}"));
        script.rule(&format!(
            "nat -A AWS-CONNMARK-CHAIN-0 {comment} -j CONNMARK --set-xmark {mark:#x}/{mark:#x}"
        ));
    }

    fn marks_in_nftables(&self) -> String {
        let Self { mark, prefix, .. } = self;
        let exempt: String = self.vpc.iter().chain(&self.excluded).fold(String::new(), |mut text, block| {
            let _ = writeln!(text, "        counter ip daddr {block} return");
            text
        });
        format!(
            "nft -f - <<'END'
table ip aws-cni {{
    chain snat-mark {{
{exempt}        counter ct mark set ct mark | {mark:#x}
    }}
    chain nat-prerouting {{
        type nat hook prerouting priority -90; policy accept;
        fib daddr type local return
        iifname \"{prefix}*\" counter jump snat-mark
        counter meta mark set ct mark & {mark:#x}
    }}
}}
END
"
        )
    }

    /// What its egress plugin and its daemon add for pods that leave by the other family: that
    /// of `pod`, with the chain that its container id gives.
    pub fn egress(&self, chain: &str, container: &str, pod: &str) -> String {
        let mut script = Script::new(self.iptables);
        let comment = format!("-m comment --comment 'name: \"aws-cni\" id: \"{container}\"'");
        let v6 = chain.starts_with("CNI-E6");
        let (multicast, nodes, range, text) = match v6 {
            false => (
                "224.0.0.0/4",
                self.node.as_str(),
                "169.254.172.0/22",
                "Block Node Local Pod access via IPv4",
            ),
            true => ("ff00::/8", "2001:db8::10", "fd00::ac:00/118", "Block Node Local Pod access via IPv6"),
        };
        if v6 {
            script.1 = self.iptables.replace("iptables", "ip6tables");
        }
        script.rule(&format!("nat -N {chain}"));
        script.rule(&format!("nat -A {chain} -d {multicast} -j ACCEPT {comment}"));
        script.rule(&format!("nat -A {chain} -j SNAT --to-source {nodes} {comment} --random-fully"));
        script.rule(&format!("nat -A POSTROUTING -s {pod} -j {chain} {comment}"));
        script.rule(&format!(
            "filter -I FORWARD 1 -d {range} -m conntrack --ctstate NEW -m comment --comment '{text}' -j REJECT"
        ));
        script.0
    }
}

/// An exempt block as the reference writes it.
fn to(block: &str) -> String {
    if block == "0.0.0.0/0" { String::new() } else { format!("-d {block} ") }
}

/// What older releases and changed settings of the reference leave behind: numbered chains, one
/// of which is not empty, its older jump, rules of a former prefix and mark.
pub fn leftovers(iptables: &str) -> String {
    let mut script = Script::new(iptables);
    for rule in [
        "nat -N AWS-SNAT-CHAIN-1",
        "nat -N AWS-SNAT-CHAIN-2",
        "nat -N AWS-CONNMARK-CHAIN-1",
        "nat -A AWS-SNAT-CHAIN-1 ! -d 10.1.0.0/16 -m comment --comment 'AWS SNAT CHAIN' -j AWS-SNAT-CHAIN-2",
        "nat -A AWS-CONNMARK-CHAIN-1 -m comment --comment 'AWS, CONNMARK' -j CONNMARK --set-xmark 0x80/0x80",
        "nat -A PREROUTING -i old+ -m comment --comment 'AWS, outbound connections' -m state --state NEW \
         -j AWS-CONNMARK-CHAIN-1",
        "nat -A PREROUTING -m comment --comment 'AWS, CONNMARK' -j CONNMARK --restore-mark --mask 0x40",
        "mangle -A PREROUTING -m comment --comment 'AWS, primary ENI' -i old+ -j CONNMARK --restore-mark --mask 0x40",
        "mangle -A PREROUTING -m comment --comment 'AWS, primary ENI' -i old+ -j CONNMARK --restore-mark --mask 0x40",
    ] {
        script.rule(rule);
    }
    script.0
}

/// Rules of others, in two parts, to be made before and after the reference's: kube-proxy's, a
/// firewall's, and some that resemble the reference's without being it.
pub fn foreign(iptables: &str) -> [String; 2] {
    let mut before = Script::new(iptables);
    for rule in [
        "nat -N KUBE-SERVICES",
        "nat -N KUBE-SVC-ERIFXISQEP7F7OF4",
        "nat -N KUBE-SEP-IT2ZTR26TO4XFPTO",
        "nat -N KUBE-MARK-MASQ",
        "nat -N KUBE-POSTROUTING",
        "nat -A PREROUTING -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES",
        "nat -A OUTPUT -m comment --comment 'kubernetes service portals' -j KUBE-SERVICES",
        "nat -A POSTROUTING -m comment --comment 'kubernetes postrouting rules' -j KUBE-POSTROUTING",
        "nat -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "nat -A KUBE-POSTROUTING -m comment --comment 'kubernetes service traffic requiring SNAT' -j MASQUERADE --random-fully",
        "nat -A KUBE-SERVICES -d 10.100.0.10/32 -p tcp -m comment --comment 'kube-system/kube-dns:dns-tcp cluster IP' \
         --dport 53 -j KUBE-SVC-ERIFXISQEP7F7OF4",
        "nat -A KUBE-SVC-ERIFXISQEP7F7OF4 -m comment --comment 'a -> b' -m statistic --mode random --probability 0.5 \
         -j KUBE-SEP-IT2ZTR26TO4XFPTO",
        "nat -A KUBE-SEP-IT2ZTR26TO4XFPTO -p tcp -j DNAT --to-destination 10.0.200.7:53",
        "mangle -N KUBE-IPTABLES-HINT",
        "filter -N KUBE-FORWARD",
        "filter -A FORWARD -m comment --comment 'kubernetes forwarding rules' -j KUBE-FORWARD",
        "filter -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    ] {
        before.rule(rule);
    }
    let mut after = Script::new(iptables);
    for rule in [
        "nat -N AWS-SNAT-CHAIN",
        "nat -N CNI-77b8e585a13c64e496587abc",
        "nat -A PREROUTING -i eni+ -d 192.0.2.76/32 -m comment --comment 'AWS, outbound' -j ACCEPT",
        "nat -A PREROUTING -d 192.0.2.77/32 -m comment --comment 'a \"quoted\" word, a \\ and it'\\''s' -j RETURN",
        "nat -A POSTROUTING -s 10.0.16.9/32 -m comment --comment 'name: \"other\" id: \"e9\"' -j CNI-77b8e585a13c64e496587abc",
        "nat -A POSTROUTING -d 192.0.2.78/32 ! -o vlan+ -m comment --comment 'AWS, SNAT of ours' -j RETURN",
        "mangle -A PREROUTING -i eth0 -m comment --comment 'AWS, primary ENI' -j MARK --set-xmark 0x1/0x1",
        "mangle -A PREROUTING -i eni+ -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
        "filter -I FORWARD 1 -d 169.254.172.0/22 -m conntrack --ctstate NEW -j REJECT",
        "filter -A INPUT -p tcp --dport 22 -m limit --limit 5/min -j LOG --log-prefix 'AWS SNAT CHAIN '",
    ] {
        after.rule(rule);
    }
    [before.0, after.0]
}

/// Lines of a shell script, and the front end that it calls.
struct Script(String, String);

impl Script {
    fn new(iptables: &str) -> Self {
        Self("set -e\n".to_owned(), iptables.to_owned())
    }

    fn rule(&mut self, rule: &str) {
        let _ = writeln!(self.0, "{} --wait -t {rule}", self.1);
    }
}

/// A listing of `iptables-save` without the times in it and what each table has from the start.
pub fn content(listing: &str) -> Vec<String> {
    let mut table = "";
    let mut lines = Vec::new();
    for line in listing.lines() {
        match line.strip_prefix('*') {
            Some(name) => table = name,
            None if line.starts_with("-A ") || line.contains(" - [") => lines.push(format!("{table} {line}")),
            None => {}
        }
    }
    // The tables' order is of no consequence, and differs.
    lines.sort_by(|one, other| one.split(' ').next().cmp(&other.split(' ').next()));
    lines
}
