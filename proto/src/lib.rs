//! What the plugin, the node daemon and the network policy agent say to each other.
//!
//! The `.proto` files under `proto/` hold the contract and its comments; this crate is their
//! generated form and the places where the parties meet.
#![forbid(unsafe_code)]

pub mod spool;

/// Where the node daemon listens.
pub const IPAMD_SOCKET: &str = "/var/run/aws-node/ipamd.sock";

/// Where the network policy agent listens.
pub const NPA_SOCKET: &str = "/var/run/aws-node/npa.sock";

/// Where a plugin leaves the DELs that the daemon could not take, beside the daemon's socket.
pub const DEL_SPOOL: &str = "/var/run/aws-node/del-spool";

/// The health service's name for the node daemon; the empty name means the same.
pub const IPAMD_HEALTH_SERVICE: &str = "grpc.health.v1.aws-node";

/// The text by which every plugin, ours and the reference's, knows that DEL met a stranger.
pub const UNKNOWN_POD: &str = "datastore: unknown pod";

/// The contract shared with the reference: package `rpc`.
pub mod rpc {
    #![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
    #![allow(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated code")]
    tonic::include_proto!("rpc");
}

/// Our own questions: package `vpccni.node.v1`.
pub mod node {
    #![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
    #![allow(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated code")]
    tonic::include_proto!("vpccni.node.v1");
}

/// The health service of the gRPC project: package `grpc.health.v1`.
pub mod health {
    #![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]
    #![allow(clippy::allow_attributes_without_reason, unused_qualifications, reason = "generated code")]
    tonic::include_proto!("grpc.health.v1");
}
