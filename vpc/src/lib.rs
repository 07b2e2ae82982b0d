//! The field's vocabulary as values: identifiers, prefixes, ENIs, pods, instance limits.
//!
//! Everything here is a plain value with parsing and display. The crate knows no clock, no
//! socket and no async runtime, so that whatever is built from it alone stays pure.
#![forbid(unsafe_code)]

mod eni;
mod family;
mod gateway;
mod id;
pub mod limits;
mod mac;
mod pod;
mod prefix;
mod slot;

pub use eni::{Eni, EniKind, EniRole, SubnetBlocks};
pub use family::Family;
pub use gateway::{IPV6_VPC_ROUTER, pod_gateway, subnet_gateway};
pub use id::{AttachmentId, EniId, IdError, InstanceId, SecurityGroupId, SubnetId, VpcId};
pub use limits::InstanceLimits;
pub use mac::{Mac, MacError};
pub use pod::{
    PodKey, PodKeyError, PodName, container_interface, dummy_interface, host_veth, split_host_veth,
    veth_suffix,
};
pub use prefix::{Prefix, PrefixError};
pub use slot::{DeviceIndex, EniSlot, NetworkCard, RouteTable};
