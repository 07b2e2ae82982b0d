//! Priorities of routing rules. Running pods and other components rely on the numbers.

/// The node's own addresses, where the kernel puts them.
pub const LOCAL: u32 = 0;
/// The same, behind the rules for branch ENIs.
pub const LOCAL_BEHIND_BRANCHES: u32 = 20;
/// In a pod: from the address of a further interface to that interface's own table.
pub const FROM_INTERFACE: u32 = 1;
/// To a pod's address: the main table, which holds the route to its veth.
pub const TO_POD: u32 = 512;
/// Marked packets, which belong to the primary ENI: the main table.
pub const MARK: u32 = 1024;
/// To a service outside the VPC that only the primary ENI reaches: the main table.
pub const EXTERNAL_SERVICE: u32 = 1535;
/// From a pod's address: the table of the ENI that the address belongs to.
pub const FROM_POD: u32 = 1536;
/// From an ENI's own address: the table of that ENI.
pub const FROM_ENI: u32 = 32765;
