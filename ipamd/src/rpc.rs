//! gRPC on the unix socket: a translation between messages and the pool, and nothing more.

mod listen;
mod node;
mod status;
#[cfg(test)]
mod tests;
mod translate;
mod why;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use ec2::{Budget, Paced};
use proto::rpc;
use proto::rpc::cni_backend_server::{CniBackend, CniBackendServer};
use proto::rpc::config_server_backend_server::{ConfigServerBackend, ConfigServerBackendServer};
use tokio::sync::Semaphore;
use tokio::time::timeout_at;
use tonic::{Request, Response, Status};
use tracing::{info, warn};
use vpc::{Family, PodKey, PodName};

use crate::clock::Moment;
use crate::host::HostHandle;
use crate::imds::{InstanceFacts, NetworkFacts};
use crate::pool_task::{AddError, DelError, Patience, PoolHandle};
use crate::takeover::TakeoverHandle;
pub(crate) use listen::{bind, serve};

/// How long a pod may wait for EC2 and the host at most; for an address that rests it may wait
/// as long as its caller says.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// How long a pod may wait for an address that rests, whatever its caller says.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// What of the caller's own deadline is kept for writing the state and for the way back.
const MARGIN: Duration = Duration::from_millis(300);

/// Calls handled at once. Parked pods count, and a node has a few hundred pods.
const CALLS: usize = 1024;

/// The largest message from a plugin: names and ids take a few hundred bytes.
const MESSAGE_SIZE: usize = 64 * 1024;

/// The largest list of attachments for a collection: thousands of pods of two hundred bytes.
const COLLECTION_SIZE: usize = 4 * 1024 * 1024;

/// What replies carry besides the pool's answer.
#[derive(Debug, Clone)]
pub(crate) struct ReplyFacts {
    /// The family of pods' addresses.
    pub(crate) family: Family,
    pub(crate) instance: InstanceFacts,
    pub(crate) network: Arc<RwLock<NetworkFacts>>,
    pub(crate) uses_external_snat: bool,
    /// Blocks that get no SNAT beside the VPC's.
    pub(crate) exclude_snat_cidrs: Vec<ipnet::Ipv4Net>,
    /// As it was spelled; empty switches the agent's hand-shake off.
    pub(crate) network_policy_mode: String,
}

/// What is left of the budget of EC2 requests, whenever it is asked for.
#[derive(Clone)]
pub(crate) struct Budgets(Arc<dyn Fn() -> Vec<Budget> + Send + Sync>);

impl Budgets {
    /// Those of this client.
    pub(crate) fn of<E: Send + Sync + 'static>(ec2: Paced<E>) -> Self {
        Self(Arc::new(move || ec2.budgets()))
    }

    fn now(&self) -> Vec<Budget> {
        (self.0)()
    }
}

impl fmt::Debug for Budgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Budgets").field(&self.now()).finish()
    }
}

/// The services of the socket. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pool: PoolHandle,
    host: HostHandle,
    facts: Arc<ReplyFacts>,
    budgets: Budgets,
    takeover: TakeoverHandle,
    started: Moment,
    adds: Arc<Semaphore>,
    /// Of their own, so that ADDs which wait for an address do not keep out the DELs that bring one.
    dels: Arc<Semaphore>,
}

impl Services {
    /// Services that answer from the pool and these facts.
    pub(crate) fn new(pool: PoolHandle, host: HostHandle, facts: ReplyFacts, budgets: Budgets) -> Self {
        Self {
            pool,
            host,
            facts: Arc::new(facts),
            budgets,
            takeover: TakeoverHandle::default(),
            started: Moment::now(),
            adds: Arc::new(Semaphore::new(CALLS)),
            dels: Arc::new(Semaphore::new(CALLS)),
        }
    }

    /// The same, telling of this take-over too.
    #[must_use]
    pub(crate) fn telling_of(self, takeover: TakeoverHandle) -> Self {
        Self { takeover, ..self }
    }

    async fn add(&self, request: Request<rpc::AddNetworkRequest>) -> rpc::AddNetworkReply {
        let began = Instant::now();
        let patience = patience_of(&request, began);
        let _permit = match timeout_at(patience.deadline.into(), self.adds.acquire()).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return translate::not_ready(),
            Err(_) => return translate::crowded(),
        };
        let message = request.into_inner();
        let key = match PodKey::new(&message.network_name, &message.container_id, &message.if_name) {
            Ok(key) => key,
            Err(error) => return translate::bad_request(&error.to_string()),
        };
        let pod = PodName::new(&message.k8s_pod_namespace, &message.k8s_pod_name);
        if message.requires_multi_nic_attachment {
            let text = "the pod asks for several interfaces, which this node does not serve";
            self.pool.not_served(key, pod, text.to_owned()).await;
            return translate::bad_request(text);
        }
        match self.pool.add(key.clone(), pod.clone(), patience).await {
            Ok(assignment) => {
                info!(%pod, %key, address = %assignment.address, took = ?began.elapsed(), "address assigned");
                let network = self.facts.network.read().unwrap_or_else(PoisonError::into_inner).clone();
                translate::assigned(&assignment, &self.facts, &network)
            }
            Err(AddError::Refused(refusal)) => translate::refused(&refusal),
            Err(AddError::ShuttingDown) => translate::not_ready(),
        }
    }

    async fn del(&self, message: rpc::DelNetworkRequest) -> Result<rpc::DelNetworkReply, Status> {
        let key = PodKey::new(&message.network_name, &message.container_id, &message.if_name)
            .map_err(|error| translate::del_error(&error.to_string()))?;
        match self.pool.del(key.clone()).await {
            Ok(released) => {
                let pod = &released.allocation.pod;
                info!(%pod, %key, address = %released.allocation.address, reason = message.reason, "address released");
                Ok(translate::released(&released, &self.facts))
            }
            Err(DelError::UnknownPod) => Err(translate::del_error(proto::UNKNOWN_POD)),
            Err(error) => {
                warn!(%key, %error, "address not released");
                Err(translate::del_error(&error.to_string()))
            }
        }
    }
}

/// How long the caller lets its pod wait from `now` on.
fn patience_of<T>(request: &Request<T>, now: Instant) -> Patience {
    let header = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let callers = header.and_then(translate::grpc_timeout);
    let latest = callers.map_or(LONGEST_WAIT, |timeout| timeout.saturating_sub(MARGIN).min(LONGEST_REST));
    Patience { deadline: now + latest.min(LONGEST_WAIT), latest: now + latest }
}

#[tonic::async_trait]
impl CniBackend for Services {
    async fn add_network(
        &self,
        request: Request<rpc::AddNetworkRequest>,
    ) -> Result<Response<rpc::AddNetworkReply>, Status> {
        Ok(Response::new(self.add(request).await))
    }

    async fn del_network(
        &self,
        request: Request<rpc::DelNetworkRequest>,
    ) -> Result<Response<rpc::DelNetworkReply>, Status> {
        let _permit = self.dels.acquire().await.map_err(|_| translate::closed())?;
        self.del(request.into_inner()).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl ConfigServerBackend for Services {
    async fn get_network_policy_configs(
        &self,
        _: Request<()>,
    ) -> Result<Response<rpc::NetworkPolicyAgentConfigReply>, Status> {
        let instance = &self.facts.instance;
        let (node_i_pv4, node_i_pv6) = match self.facts.family {
            Family::V4 => (instance.node_ip.to_string(), String::new()),
            Family::V6 => (String::new(), instance.node_ipv6.map_or_else(String::new, |ip| ip.to_string())),
        };
        Ok(Response::new(rpc::NetworkPolicyAgentConfigReply {
            network_policy_mode: self.facts.network_policy_mode.clone(),
            multi_nic_enabled: false,
            node_i_pv4,
            node_i_pv6,
            instance_id: self.facts.instance.instance.to_string(),
            region: self.facts.instance.region.clone(),
        }))
    }
}

fn cni_backend(services: Services) -> CniBackendServer<Services> {
    CniBackendServer::new(services).max_decoding_message_size(MESSAGE_SIZE)
}

fn config_server(services: Services) -> ConfigServerBackendServer<Services> {
    ConfigServerBackendServer::new(services).max_decoding_message_size(MESSAGE_SIZE)
}
