//! What a test turns and reads while the world runs. The handle offers the same under real time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bucket::{ActionClass, BucketSpec};
use super::credentials::{Credentials, RoleCredentials};
use super::fault::{Fault, FaultId};
use super::latency::Latency;
use super::limits::InstanceType;
use super::log::{CallRecord, Count};
use super::model::Cloud;

impl Cloud {
    /// Installs a fault.
    pub fn fault(&mut self, now: Duration, fault: Fault) -> FaultId {
        self.faults.add(now, fault)
    }

    /// Takes a fault away.
    pub fn clear_fault(&mut self, id: FaultId) {
        self.faults.remove(id);
    }

    /// Takes all faults away.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Makes an action slow; `*` stands for all EC2 actions without a latency of their own, and
    /// [`super::IMDS`] for IMDS.
    pub fn set_latency(&mut self, action: &str, latency: impl Into<Latency>) {
        self.latencies.set(action, latency.into());
    }

    /// Limits the rate of a class of actions, or lifts the limit.
    pub fn set_bucket(&mut self, now: Duration, class: ActionClass, spec: Option<BucketSpec>) {
        self.buckets.set(now, class, spec);
    }

    /// Lets IMDS show the state of so long ago. A lag that grows makes it stand still for a
    /// while; it does not take back what it has shown.
    pub fn set_imds_lag(&mut self, now: Duration, lag: Duration) {
        self.history.set_lag(now, lag);
    }

    /// How long an attachment stays `attaching`.
    pub fn set_attach_delay(&mut self, delay: Duration) {
        self.knobs.attach_delay = delay;
    }

    /// How long an attachment stays `detaching`.
    pub fn set_detach_delay(&mut self, delay: Duration) {
        self.knobs.detach_delay = delay;
    }

    /// How long role credentials issued from now on are good for.
    pub fn set_credential_lifetime(&mut self, lifetime: Duration) {
        self.keyring.lifetime = lifetime;
    }

    /// What IMDS does when asked for credentials.
    pub fn set_role_credentials(&mut self, mode: RoleCredentials) {
        self.keyring.mode = mode;
    }

    /// The credentials that IMDS hands to `instance` at `now`; `None` when it has none to give.
    pub fn role_credentials(&mut self, now: Duration, instance: &str) -> Option<Credentials> {
        self.keyring.for_instance(now, instance, &mut self.dice)
    }

    /// Ends every session of the instance's role at once.
    pub fn expire_credentials(&mut self, now: Duration, instance: &str) {
        self.keyring.expire(now, instance);
    }

    /// Lets a further person in, with a key that never ends.
    pub fn add_access_key(&mut self, access_key: &str, secret_key: &str) {
        self.keyring.add_static(access_key, secret_key);
    }

    /// Teaches the world an instance type.
    pub fn add_instance_type(&mut self, instance_type: InstanceType) {
        self.trees.clear();
        self.types.insert(instance_type.name.clone(), instance_type);
    }

    /// The calls so far, oldest first.
    pub fn calls(&self) -> Vec<CallRecord> {
        self.log.records()
    }

    /// Counts by action.
    pub fn counts(&self) -> BTreeMap<String, Count> {
        self.log.counts()
    }

    /// Counts by action of one instance.
    pub fn counts_of(&self, instance: &str) -> BTreeMap<String, Count> {
        self.log.counts_of(instance)
    }
}
