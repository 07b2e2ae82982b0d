//! The model under real time: one owner inside, as many handles as wanted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use tokio::sync::watch;
use tokio::time::Instant;

use super::admission::{Admission, Caller, Reply};
use super::bucket::{ActionClass, BucketSpec};
use super::builder::CloudBuilder;
use super::credentials::RoleCredentials;
use super::error::Ec2Error;
use super::fault::{Fault, FaultId};
use super::gate::{Gate, GatePoint, Gates};
use super::instance::Instance;
use super::latency::Latency;
use super::limits::InstanceType;
use super::log::{CallRecord, Count};
use super::model::{Cloud, LaunchSpec};
use super::request::{Request, Response};
use super::snapshot::Snapshot;

/// A cloud that lives by the clock. Clones talk about the same world.
#[derive(Debug, Clone)]
pub struct CloudHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cloud: Mutex<Cloud>,
    began: Instant,
    version: watch::Sender<u64>,
    activity: watch::Sender<u64>,
    gates: Gates,
    /// When the next wake-up is due, so that no second one is set for the same time.
    alarm: Mutex<Option<Duration>>,
}

/// An answer of the EC2 front: the request id and the result.
pub type Ec2Reply = Reply<(String, Result<Response, Ec2Error>)>;

impl CloudHandle {
    /// Starts the clock of a new world; its epoch is the present.
    pub fn start(builder: CloudBuilder) -> CloudHandle {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
        let cloud = builder.epoch_unix(epoch).build();
        let version = cloud.snapshot().version;
        CloudHandle(Arc::new(Shared {
            cloud: Mutex::new(cloud),
            began: Instant::now(),
            version: watch::Sender::new(version),
            activity: watch::Sender::new(0),
            gates: Gates::default(),
            alarm: Mutex::new(None),
        }))
    }

    /// Time since the world began.
    pub fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Runs `work` on the model at the present time. For what has no method of its own here.
    pub fn with<R>(&self, work: impl FnOnce(&mut Cloud, Duration) -> R) -> R {
        let mut cloud = self.0.cloud.lock().unwrap_or_else(PoisonError::into_inner);
        // The clock is read under the lock, so that the model never sees time run backwards.
        let now = self.now();
        cloud.advance(now);
        let result = work(&mut cloud, now);
        let version = cloud.snapshot().version;
        let next = cloud.next_transition();
        drop(cloud);
        // Outside of the lock the announcements of two changes may overtake each other.
        self.0.version.send_if_modified(|it| {
            let is_newer = version > *it;
            *it = version.max(*it);
            is_newer
        });
        if let Some(due) = next {
            self.wake_at(due);
        }
        result
    }

    /// Sees to it that the model moves on at `due` even if nobody calls.
    fn wake_at(&self, due: Duration) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut alarm = self.0.alarm.lock().unwrap_or_else(PoisonError::into_inner);
        if alarm.is_some_and(|set| set <= due) {
            return;
        }
        *alarm = Some(due);
        let shared = Arc::downgrade(&self.0);
        let at = self.0.began + due;
        runtime.spawn(async move {
            tokio::time::sleep_until(at).await;
            if let Some(shared) = shared.upgrade() {
                *shared.alarm.lock().unwrap_or_else(PoisonError::into_inner) = None;
                CloudHandle(shared).with(|_, _| ());
            }
        });
    }

    /// The current state.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.with(|cloud, _| cloud.snapshot())
    }

    /// The version of the current state; changes whenever something visible changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// One EC2 call with all that can befall it. The work goes on when the caller gives up:
    /// EC2 does not forget a request because the connection is gone.
    pub async fn call(
        &self,
        caller: Caller,
        action: String,
        request: Result<Request, Ec2Error>,
        summary: String,
    ) -> Ec2Reply {
        let admission = self.with(|cloud, now| cloud.admit(now, &caller, &action, request.as_ref(), summary));
        let request_id = admission.request_id.clone();
        let reply = self
            .see_through(admission, move |cloud, now| {
                let request = request?;
                cloud.perform(now, &request)
            })
            .await;
        match reply {
            Reply::Answer(result) => Reply::Answer((request_id, result)),
            Reply::Closed => Reply::Closed,
            Reply::Never => Reply::Never,
        }
    }

    /// An EC2 call of a person, for tests that act on the world from outside of any node.
    ///
    /// # Errors
    /// EC2's own; `Unavailable` when a fault leaves the call without an answer.
    pub async fn ask(&self, request: Request) -> Result<Response, Ec2Error> {
        let (action, summary) = (request.action().to_owned(), format!("{request:?}"));
        match self.call(Caller::person(), action, Ok(request), summary).await {
            Reply::Answer((_, result)) => result,
            Reply::Closed | Reply::Never => Err(Ec2Error::new("Unavailable", "The call got no answer")),
        }
    }

    /// Holds, delays, works and logs what was admitted, apart from the caller's own fate.
    pub(crate) async fn see_through<T: Send + 'static>(
        &self,
        admission: Admission,
        work: impl FnOnce(&mut Cloud, Duration) -> Result<T, Ec2Error> + Send + 'static,
    ) -> Reply<Result<T, Ec2Error>> {
        self.0.activity.send_modify(|it| *it += 1);
        let handle = self.clone();
        let task = tokio::spawn(async move {
            let call = admission.call.clone();
            handle.0.gates.pass(&call, GatePoint::BeforeWork).await;
            tokio::time::sleep(admission.latency).await;
            let reply = handle.with(|cloud, now| cloud.settle(now, admission, work));
            handle.0.activity.send_modify(|it| *it += 1);
            handle.0.gates.pass(&call, GatePoint::BeforeAnswer).await;
            reply
        });
        // Only a panic or the end of the runtime gets here; both look like a lost connection.
        task.await.unwrap_or(Reply::Closed)
    }

    /// The calls so far, oldest first.
    pub fn calls(&self) -> Vec<CallRecord> {
        self.with(|cloud, _| cloud.calls())
    }

    /// Counts by action.
    pub fn counts(&self) -> BTreeMap<String, Count> {
        self.with(|cloud, _| cloud.counts())
    }

    /// Counts by action of one instance.
    pub fn counts_of(&self, instance: &str) -> BTreeMap<String, Count> {
        self.with(|cloud, _| cloud.counts_of(instance))
    }

    /// Waits until `action` has been received `calls` times since the world began.
    pub async fn received(&self, action: &str, calls: u64) {
        self.counted(action, |count| count.received >= calls).await;
    }

    /// Waits until `calls` calls of `action` have come to an end since the world began.
    pub async fn completed(&self, action: &str, calls: u64) {
        self.counted(action, |count| count.completed >= calls).await;
    }

    /// Waits until the counts of `action` satisfy `enough`.
    pub async fn counted(&self, action: &str, enough: impl Fn(Count) -> bool) {
        let mut activity = self.0.activity.subscribe();
        // The sender lives in `self`, so `changed` cannot fail.
        while !enough(self.with(|cloud, _| cloud.log.count_of(action))) {
            let _ = activity.changed().await;
        }
    }

    /// Installs a fault.
    pub fn fault(&self, fault: Fault) -> FaultId {
        self.with(|cloud, now| cloud.fault(now, fault))
    }

    /// Takes a fault away.
    pub fn clear_fault(&self, id: FaultId) {
        self.with(|cloud, _| cloud.clear_fault(id));
    }

    /// Takes all faults away.
    pub fn clear_faults(&self) {
        self.with(|cloud, _| cloud.clear_faults());
    }

    /// Holds calls of `action` at `point` until the gate lets them through.
    pub fn gate(&self, action: &str, point: GatePoint) -> Gate {
        self.0.gates.install(action, point)
    }

    /// Makes an action slow; `*` stands for all EC2 actions without a latency of their own, and
    /// [`super::IMDS`] for IMDS.
    pub fn set_latency(&self, action: &str, latency: impl Into<Latency>) {
        self.with(|cloud, _| cloud.set_latency(action, latency));
    }

    /// Limits the rate of a class of actions, or lifts the limit.
    pub fn set_bucket(&self, class: ActionClass, spec: Option<BucketSpec>) {
        self.with(|cloud, now| cloud.set_bucket(now, class, spec));
    }

    /// Lets IMDS show the state of so long ago. A lag that grows makes it stand still for a
    /// while; it does not take back what it has shown.
    pub fn set_imds_lag(&self, lag: Duration) {
        self.with(|cloud, now| cloud.set_imds_lag(now, lag));
    }

    /// How long an attachment stays `attaching`.
    pub fn set_attach_delay(&self, delay: Duration) {
        self.with(|cloud, _| cloud.set_attach_delay(delay));
    }

    /// How long an attachment stays `detaching`.
    pub fn set_detach_delay(&self, delay: Duration) {
        self.with(|cloud, _| cloud.set_detach_delay(delay));
    }

    /// How long credentials issued from now on are good for.
    pub fn set_credential_lifetime(&self, lifetime: Duration) {
        self.with(|cloud, _| cloud.set_credential_lifetime(lifetime));
    }

    /// What IMDS does when asked for credentials.
    pub fn set_role_credentials(&self, mode: RoleCredentials) {
        self.with(|cloud, _| cloud.set_role_credentials(mode));
    }

    /// Ends every session of the instance's role at once.
    pub fn expire_credentials(&self, instance: &str) {
        self.with(|cloud, now| cloud.expire_credentials(now, instance));
    }

    /// Whether the IMDS of `instance` also answers without a session token.
    pub fn set_imds_v1(&self, instance: &str, is_allowed: bool) {
        self.with(|cloud, now| cloud.set_imds_v1(now, instance, is_allowed));
    }

    /// Others take addresses of a subnet until only `leave` are free.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`.
    pub fn occupy_subnet(&self, subnet: &str, leave: u32) -> Result<(), Ec2Error> {
        self.with(|cloud, now| cloud.occupy_subnet(now, subnet, leave))
    }

    /// Others take one address of each free /28 of a subnet.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`.
    pub fn fragment_subnet(&self, subnet: &str) -> Result<(), Ec2Error> {
        self.with(|cloud, now| cloud.fragment_subnet(now, subnet))
    }

    /// Others give back what they have taken of a subnet.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`.
    pub fn vacate_subnet(&self, subnet: &str) -> Result<(), Ec2Error> {
        self.with(|cloud, now| cloud.vacate_subnet(now, subnet))
    }

    /// Sets a tag of an ENI, instance or subnet; `None` takes it away.
    ///
    /// # Errors
    /// EC2's own for an id that does not exist.
    pub fn set_tag(&self, resource: &str, key: &str, value: Option<&str>) -> Result<(), Ec2Error> {
        self.with(|cloud, now| cloud.set_tag(now, resource, key, value))
    }

    /// Teaches the world an instance type.
    pub fn add_instance_type(&self, instance_type: InstanceType) {
        self.with(|cloud, _| cloud.add_instance_type(instance_type));
    }

    /// Replaces the VPC's ranges.
    pub fn set_vpc_cidrs(&self, cidrs: Vec<Ipv4Net>) {
        self.with(|cloud, now| cloud.set_vpc_cidrs(now, cidrs));
    }

    /// Starts an instance in a subnet given by its id.
    ///
    /// # Errors
    /// EC2's own: unknown type or subnet, no free address.
    pub fn run_instance(&self, instance_type: &str, subnet_id: &str) -> Result<Arc<Instance>, Ec2Error> {
        self.launch(LaunchSpec {
            instance_type: instance_type.to_owned(),
            subnet_id: subnet_id.to_owned(),
            ..LaunchSpec::default()
        })
    }

    /// Starts an instance with all choices.
    ///
    /// # Errors
    /// EC2's own: unknown type or subnet, no free address.
    pub fn launch(&self, spec: LaunchSpec) -> Result<Arc<Instance>, Ec2Error> {
        self.with(|cloud, now| cloud.run_instance(now, spec))
    }

    /// Ends an instance.
    ///
    /// # Errors
    /// `InvalidInstanceID.NotFound`.
    pub fn terminate_instance(&self, id: &str) -> Result<(), Ec2Error> {
        self.with(|cloud, now| cloud.terminate_instance(now, id))
    }
}
