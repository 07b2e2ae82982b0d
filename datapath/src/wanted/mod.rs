//! What a pod's and the node's networking should look like: plain values, no kernel.

mod host;
pub mod nft;
mod pod;
pub mod priority;

pub use host::{EniNetwork, HostNetwork, HostOptions, PrimaryLink, RandomSnat};
pub use pod::{PodInterface, PodNetwork, PodOnHost};
