//! The EC2 actions the daemon uses, in our words, with their errors sorted by what a caller can do.
//!
//! - [`Ec2`] is the seam: one method, one EC2 request. [`Aws`] implements it over the AWS SDK;
//!   no type of the SDK shows in this crate's interface.
//! - [`Paced`] is the client that everybody calls. It spends a budget of requests by priority,
//!   backs off for all callers when EC2 throttles, repeats what is safe to repeat, and follows
//!   pages.
//! - [`Imds`] reads instance metadata; [`Metadata`] is the seam beside it.
#![forbid(unsafe_code)]

mod action;
mod aws;
mod error;
mod imds;
mod paced;
mod types;

use std::net::Ipv4Addr;

use vpc::{AttachmentId, EniId, EniSlot, InstanceId, InstanceLimits, Prefix, SecurityGroupId, VpcId};

pub use action::Action;
pub use aws::{Aws, AwsOptions};
pub use error::{Class, Ec2Error, Retry};
pub use imds::{Imds, ImdsError, ImdsOptions, Metadata, Metadatum};
pub use paced::{At, Attempt, Bucket, Budget, PaceOptions, Paced, Priority, Rate};
pub use types::{
    AttachEni, Attachment, AttachmentStatus, CLUSTER_TAG, CREATED_AT_TAG, ConnectionTracking, CreateEni,
    ENI_DESCRIPTION_PREFIX, EniQuery, EniRecord, EniStatus, INSTANCE_TAG, NewAddresses, Page, PageToken,
    SubnetRecord, Tags, eni_description,
};

/// The outcome of an EC2 request.
pub type Result<T> = std::result::Result<T, Ec2Error>;

/// The EC2 actions we use. Every method sends one request, once.
///
/// Callers use [`Paced`]; this trait is what it calls, and what a simulation implements.
pub trait Ec2: Send + Sync + 'static {
    /// What an instance type like `m5.large` can hold.
    fn describe_instance_type(&self, name: &str) -> impl Future<Output = Result<InstanceLimits>> + Send;

    /// The positions that are taken on `instance`, in no particular order.
    fn describe_instance_slots(
        &self,
        instance: &InstanceId,
    ) -> impl Future<Output = Result<Vec<EniSlot>>> + Send;

    /// A page of the ENIs that `query` asks for; the first one without `page`.
    fn describe_enis(
        &self,
        query: &EniQuery,
        page: Option<&PageToken>,
    ) -> impl Future<Output = Result<Page<EniRecord>>> + Send;

    /// A page of the subnets of `vpc` in `availability_zone`.
    fn describe_subnets(
        &self,
        vpc: &VpcId,
        availability_zone: &str,
        page: Option<&PageToken>,
    ) -> impl Future<Output = Result<Page<SubnetRecord>>> + Send;

    /// Makes an ENI. A repeated request with the same client token gives the same ENI.
    fn create_eni(&self, eni: &CreateEni) -> impl Future<Output = Result<EniRecord>> + Send;

    /// Attaches an ENI.
    fn attach_eni(&self, attach: &AttachEni) -> impl Future<Output = Result<AttachmentId>> + Send;

    /// Has EC2 delete an attached ENI together with its instance.
    fn set_delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Replaces the security groups of an ENI.
    fn set_security_groups(
        &self,
        eni: &EniId,
        groups: &[SecurityGroupId],
    ) -> impl Future<Output = Result<()>> + Send;

    /// Starts to detach an ENI; the answer comes before the ENI is free.
    fn detach_eni(&self, attachment: &AttachmentId) -> impl Future<Output = Result<()>> + Send;

    /// Deletes an unattached ENI. One that EC2 does not know is deleted.
    fn delete_eni(&self, eni: &EniId) -> impl Future<Output = Result<()>> + Send;

    /// Assigns `count` secondary IPs of EC2's choice. An answer that does not list them is empty.
    fn assign_ips(&self, eni: &EniId, count: u16) -> impl Future<Output = Result<Vec<Ipv4Addr>>> + Send;

    /// Assigns `count` IPv4 prefixes of EC2's choice. An answer that does not list them is empty.
    fn assign_prefixes(&self, eni: &EniId, count: u16) -> impl Future<Output = Result<Vec<Prefix>>> + Send;

    /// Assigns `count` IPv6 prefixes of EC2's choice. An answer that does not list them is empty.
    fn assign_ipv6_prefixes(
        &self,
        eni: &EniId,
        count: u16,
    ) -> impl Future<Output = Result<Vec<Prefix>>> + Send;

    /// Takes secondary IPs from an ENI.
    fn unassign_ips(&self, eni: &EniId, ips: &[Ipv4Addr]) -> impl Future<Output = Result<()>> + Send;

    /// Takes IPv4 prefixes from an ENI.
    fn unassign_prefixes(&self, eni: &EniId, prefixes: &[Prefix]) -> impl Future<Output = Result<()>> + Send;

    /// Adds tags to an ENI or replaces their values; other tags stay.
    fn tag(&self, eni: &EniId, tags: &Tags) -> impl Future<Output = Result<()>> + Send;
}
