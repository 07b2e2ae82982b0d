//! Carries out the pool's steps: asks EC2, has the host set up, and reports what came of it.

mod allocate;
mod coalesce;
mod failure;
mod free;
mod inventory;
mod leaks;
mod leftovers;
mod look;
mod metadata;
mod subnets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use datapath::wanted::EniNetwork;
use ec2::{At, ConnectionTracking, Ec2, INSTANCE_TAG, Paced, Priority, Tags};
use tracing::warn;
use vpc::{Eni, EniId, EniKind, Family, SecurityGroupId, SubnetBlocks, SubnetId};

use crate::clock::{Clock, Moment};
use crate::config::Ec2Access;
use crate::host::HostHandle;
use crate::imds::{FactReader, InstanceFacts, NetworkFacts};
use crate::pool::{Block, BlockKind, Blocks, FailureClass, Outcome, Step, StepFailure, Subnet};
use crate::pool_task::{StepRunner, Urgency};
use crate::sidecar::Sidecar;
use allocate::Wish;
use coalesce::Coalesced;
pub(crate) use failure::StepError;
pub(crate) use leftovers::EC2_SETTLES;
use look::Look;
use metadata::{Differences, Sightings};

/// What the executor must know of the operator's choices and of the machine.
#[derive(Debug, Clone)]
pub(crate) struct ExecutorOptions {
    pub(crate) cluster_name: Option<String>,
    pub(crate) additional_eni_tags: Tags,
    pub(crate) manages_untagged_enis: bool,
    pub(crate) discovers_subnets: bool,
    /// New ENIs have security groups of their own, so none follow the primary ENI's.
    pub(crate) is_custom: bool,
    pub(crate) access: Ec2Access,
    /// Whether to delete what nodes of the cluster left behind.
    pub(crate) cleans_leaked_enis: bool,
    /// The family of pods' addresses.
    pub(crate) family: Family,
    /// The network card whose ENIs the pool holds.
    pub(crate) card: u16,
    pub(crate) clock: Clock,
    /// Names for requests that nobody else in the account uses.
    pub(crate) new_token: fn() -> String,
}

/// An ENI as it was last read, with what the pool does not care for.
#[derive(Debug, Clone)]
struct Known {
    eni: Eni,
    security_groups: Vec<SecurityGroupId>,
    /// None while nobody has read them.
    tags: Option<Tags>,
    /// Description and tag say that it was made for this instance.
    is_ours: bool,
    /// Its attachment, where EC2 would keep it after the instance has gone.
    survives_instance: Option<vpc::AttachmentId>,
}

/// What the executor remembers between steps.
#[derive(Debug, Default)]
struct Memory {
    enis: BTreeMap<EniId, Known>,
    /// Found on their way out, and being deleted.
    leaving: BTreeSet<EniId>,
    /// Attached too, but none of the pool's: on other cards, or without what a pod needs.
    others: BTreeSet<EniId>,
    /// Freed; metadata may show them for a while.
    gone: BTreeSet<EniId>,
    sightings: Sightings,
    differences: Differences,
    subnet_blocks: BTreeMap<SubnetId, SubnetBlocks>,
    /// How often in a row not everything could be put right, and until when to leave it at that.
    failed_repairs: u32,
    repair_rests_until: Option<Instant>,
    /// EC2 has been read, so ENIs without an owner are to be looked for when nobody waits for it.
    looks_for_leftovers: bool,
    /// ENIs without an owner may be left: when to look for them, and how often in a row that failed.
    leftovers_due: Option<Instant>,
    failed_searches: u32,
    /// As the primary ENI has it; new ENIs get the same.
    connection_tracking: Option<ConnectionTracking>,
}

/// Executes steps, several at a time.
pub(crate) struct Executor<E> {
    ec2: Paced<E>,
    facts: FactReader,
    instance: InstanceFacts,
    network: Arc<RwLock<NetworkFacts>>,
    host: HostHandle,
    sidecar: Arc<Sidecar>,
    options: ExecutorOptions,
    memory: Mutex<Memory>,
    /// Held for reading while an ENI is being made, and for writing while EC2's inventory is read
    /// or leftovers are looked for: an ENI halfway in would else be taken for one without an owner.
    making: tokio::sync::RwLock<()>,
    inventories: Coalesced<Result<Vec<Eni>, StepError>>,
    subnets: Coalesced<Result<Vec<Subnet>, StepError>>,
}

impl<E: Ec2> Executor<E> {
    /// An executor that has asked nothing yet.
    pub(crate) fn new(
        ec2: Paced<E>,
        facts: FactReader,
        instance: InstanceFacts,
        network: Arc<RwLock<NetworkFacts>>,
        host: HostHandle,
        sidecar: Arc<Sidecar>,
        options: ExecutorOptions,
    ) -> Self {
        let blocks = SubnetBlocks { ipv4: instance.subnet_cidr, ipv6: instance.subnet_ipv6_cidr };
        let subnet_blocks = BTreeMap::from([(instance.subnet.clone(), blocks)]);
        Self {
            ec2,
            facts,
            instance,
            network,
            host,
            sidecar,
            options,
            memory: Mutex::new(Memory { subnet_blocks, ..Memory::default() }),
            making: tokio::sync::RwLock::new(()),
            inventories: Coalesced::default(),
            subnets: Coalesced::default(),
        }
    }

    fn memory<T>(&self, look: impl FnOnce(&mut Memory) -> T) -> T {
        // A panic while the lock was held cannot leave half a change: the closures only move values.
        look(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn moment(&self) -> Moment {
        self.options.clock.moment()
    }

    fn known(&self, eni: &EniId) -> Result<Eni, StepError> {
        self.memory(|memory| memory.enis.get(eni).map(|known| known.eni.clone()))
            .ok_or_else(|| StepError::unknown_eni(eni))
    }

    fn security_groups(&self) -> Vec<SecurityGroupId> {
        self.network.read().unwrap_or_else(PoisonError::into_inner).security_groups.clone()
    }

    /// The tags that every ENI of ours has.
    fn eni_tags(&self) -> Tags {
        let mut tags = Tags::from([(INSTANCE_TAG.to_owned(), self.instance.instance.to_string())]);
        if let Some(cluster) = &self.options.cluster_name {
            tags.insert(ec2::CLUSTER_TAG.to_owned(), cluster.clone());
            tags.insert("eks:eni:owner".to_owned(), "amazon-vpc-cni".to_owned());
        }
        tags.extend(self.options.additional_eni_tags.clone());
        tags
    }

    async fn assign(&self, at: &At<E>, eni: &EniId, blocks: Blocks) -> Result<Outcome, StepError> {
        let count = allocate::to_u16(blocks.count());
        let assigned: Vec<_> = match blocks.kind() {
            BlockKind::Ip => at.assign_ips(eni, count).await?.into_iter().map(Block::Ip).collect(),
            BlockKind::Prefix => {
                at.assign_prefixes(eni, count).await?.into_iter().map(Block::Prefix).collect()
            }
            BlockKind::Ipv6Prefix => {
                at.assign_ipv6_prefixes(eni, count).await?.into_iter().map(Block::Prefix).collect()
            }
        };
        self.note(eni, |eni| take_in(eni, &assigned));
        Ok(Outcome::Assigned(assigned))
    }

    async fn set_up_eni(&self, eni: &EniId) -> Result<Outcome, StepError> {
        let eni = self.known(eni)?;
        let wanted = eni_network(&eni, self.options.family).ok_or_else(|| {
            StepError::host(
                &eni.id,
                &"it has no IPv6 address of its own, which its pods' traffic needs; assign it one",
            )
        })?;
        self.host.set_up_eni(wanted).await.map_err(|error| StepError::host(&eni.id, &error))?;
        Ok(Outcome::EniSetUp)
    }

    async fn unassign(&self, at: &At<E>, eni: &EniId, blocks: &[Block]) -> Result<Outcome, StepError> {
        self.returning(eni, Some(blocks), async {
            let look = Look::at_blocks(&self.host, eni, blocks.to_vec());
            match self.unassign_all(&look.before(at), eni, blocks).await {
                Ok(()) => Ok(Outcome::Unassigned),
                Err(error) => look.explain(error),
            }
        })
        .await
    }

    async fn unassign_all(&self, at: &At<E>, eni: &EniId, blocks: &[Block]) -> Result<(), StepError> {
        let (mut ips, mut prefixes) = (Vec::new(), Vec::new());
        for block in blocks {
            match block {
                Block::Ip(ip) => ips.push(*ip),
                Block::Prefix(prefix) => prefixes.push(*prefix),
            }
        }
        if !ips.is_empty() {
            at.unassign_ips(eni, &ips).await?;
        }
        if !prefixes.is_empty() {
            at.unassign_prefixes(eni, &prefixes).await?;
        }
        self.note(eni, |eni| {
            eni.secondary_ips.retain(|ip| !ips.contains(ip));
            eni.prefixes.retain(|prefix| !prefixes.contains(prefix));
        });
        Ok(())
    }

    /// Keeps the picture of an ENI up to date with what was just done to it.
    fn note(&self, eni: &EniId, edit: impl FnOnce(&mut Eni)) {
        self.memory(|memory| {
            if let Some(known) = memory.enis.get_mut(eni) {
                edit(&mut known.eni);
            }
        });
    }

    /// Why a step may not be carried out by what the operator allows. The pool plans no such step;
    /// this is what the promise to leave EC2 alone rests on.
    fn forbidden(&self, step: &Step) -> Option<StepError> {
        let access = self.options.access;
        let is_allowed = match step {
            Step::SetUpEni { .. } | Step::ReadInventory => true,
            Step::ReadSubnets => access.may_read(),
            Step::AllocateEni { .. } | Step::Assign { .. } | Step::Unassign { .. } | Step::FreeEni { .. } => {
                access.may_change()
            }
        };
        (!is_allowed).then(|| StepError::forbidden(step))
    }

    async fn execute(&self, step: Step, urgency: Urgency) -> Result<Outcome, StepError> {
        if let Some(error) = self.forbidden(&step) {
            return Err(error);
        }
        let growth = self.ec2.at(match urgency {
            Urgency::PodsWait => Priority::WaitingPod,
            Urgency::Warmth => Priority::WarmFill,
        });
        let shrink = self.ec2.at(Priority::Shrink);
        match step {
            Step::AllocateEni { slot, subnet, security_groups, blocks } => {
                let security_groups = security_groups.as_deref();
                let wish = Wish { slot, subnet: &subnet, security_groups, blocks };
                self.allocate_eni(&growth, wish).await
            }
            Step::Assign { eni, blocks } => self.assign(&growth, &eni, blocks).await,
            Step::SetUpEni { eni } => self.set_up_eni(&eni).await,
            Step::Unassign { eni, blocks } => self.unassign(&shrink, &eni, &blocks).await,
            Step::FreeEni { eni } => self.free_eni(&shrink, &eni).await,
            Step::ReadSubnets => Ok(Outcome::Subnets(self.read_subnets(&growth).await?)),
            Step::ReadInventory => {
                let priority = match urgency {
                    Urgency::PodsWait => Priority::WaitingPod,
                    Urgency::Warmth => Priority::Reconcile,
                };
                Ok(Outcome::Inventory(self.read_inventory(priority).await?))
            }
        }
    }
}

impl<E: Ec2> StepRunner for Executor<E> {
    async fn run(&self, step: Step, urgency: Urgency) -> Outcome {
        self.execute(step, urgency).await.unwrap_or_else(|error| Outcome::Failed(error.into()))
    }

    fn remove_stale_rules(&self, address: IpAddr) {
        let host = self.host.clone();
        tokio::spawn(async move {
            if let Err(error) = host.remove_pod_rules(address).await {
                warn!(%address, %error, "stale rules not removed");
            }
        });
    }
}

fn take_in(eni: &mut Eni, assigned: &[Block]) {
    for block in assigned {
        match block {
            Block::Ip(ip) if !eni.secondary_ips.contains(ip) => eni.secondary_ips.push(*ip),
            Block::Prefix(prefix) if !eni.prefixes.contains(prefix) => eni.prefixes.push(*prefix),
            Block::Ip(_) | Block::Prefix(_) => {}
        }
    }
}

/// What the host should have for a secondary ENI whose pods have addresses of `family`; none for
/// an ENI without an address of it.
pub(crate) fn eni_network(eni: &Eni, family: Family) -> Option<EniNetwork> {
    let (address, subnet) = eni.own(family)?;
    Some(EniNetwork {
        mac: eni.mac,
        table: eni.route_table(),
        address,
        subnet,
        is_trunk: eni.kind == EniKind::Trunk,
    })
}

impl From<StepError> for StepFailure {
    fn from(error: StepError) -> Self {
        Self { class: error.class, message: error.message, retry_after: None }
    }
}

impl StepError {
    fn unknown_eni(eni: &EniId) -> Self {
        Self { class: FailureClass::NotFound, message: format!("{eni} is not known to be attached") }
    }

    fn forbidden(step: &Step) -> Self {
        Self {
            class: FailureClass::Other,
            message: format!(
                "{step}: switched off by ENABLE_IMDS_ONLY_MODE or DISABLE_NETWORK_RESOURCE_PROVISIONING"
            ),
        }
    }
}
