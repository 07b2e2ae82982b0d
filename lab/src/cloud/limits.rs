//! What each instance type can hold.

/// The limits of an instance type, as `DescribeInstanceTypes` gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceType {
    /// Its name.
    pub name: String,
    /// ENIs in all.
    pub enis: u16,
    /// IPv4 addresses of an ENI, its primary one included. A prefix takes the room of one.
    pub ipv4_per_eni: u16,
    /// ENIs that each network card takes, by card index. At least one card.
    pub cards: Vec<u16>,
    /// `nitro` or `xen`; empty for bare metal.
    pub hypervisor: String,
    /// Whether there is no hypervisor.
    pub bare_metal: bool,
    /// Virtual CPUs.
    pub vcpus: u16,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl InstanceType {
    /// A nitro type with one network card.
    pub fn new(name: &str, enis: u16, ipv4_per_eni: u16, vcpus: u16) -> InstanceType {
        InstanceType {
            name: name.to_owned(),
            enis,
            ipv4_per_eni,
            cards: vec![enis],
            hypervisor: "nitro".to_owned(),
            bare_metal: false,
            vcpus,
            memory_mib: u32::from(vcpus) * 4096,
        }
    }

    /// The same with several network cards.
    pub fn with_cards(mut self, cards: Vec<u16>) -> InstanceType {
        self.cards = cards;
        self
    }
}

/// The types that a new world knows.
///
/// `x9lab.large` exists nowhere else: a daemon with a built-in table has to ask for it.
///
/// Source: EC2 `DescribeInstanceTypes`.
pub(crate) fn known() -> Vec<InstanceType> {
    vec![
        InstanceType::new("t3.small", 3, 4, 2),
        InstanceType::new("t3.medium", 3, 6, 2),
        InstanceType::new("t3.large", 3, 12, 2),
        InstanceType::new("m5.large", 3, 10, 2),
        InstanceType::new("m5.xlarge", 4, 15, 4),
        InstanceType::new("c5.large", 3, 10, 2),
        InstanceType::new("c5.4xlarge", 8, 30, 16),
        InstanceType::new("p3dn.24xlarge", 15, 50, 96),
        InstanceType::new("p5.48xlarge", 64, 50, 192).with_cards(vec![2; 32]),
        InstanceType::new("x9lab.large", 5, 7, 2),
    ]
}
