//! Our own questions: whether an ADD could be served, what the runtime has forgotten, what the
//! node is doing and why a pod has no address.

use proto::node::node_server::{Node, NodeServer};
use proto::node::{
    CollectReply, CollectRequest, Collected, ConfirmReply, ConfirmRequest, ReadinessReply, ReadinessRequest,
    StatusReply, StatusRequest, WhyReply, WhyRequest,
};
use tonic::{Request, Response, Status};

use super::why::{Subject, why};
use super::{COLLECTION_SIZE, Services, status, translate};
use crate::clock::Moment;
use crate::host::{self, HostHealth};
use crate::pool_task::{AddError, Collection};

pub(super) fn server(services: Services) -> NodeServer<Services> {
    NodeServer::new(services).max_decoding_message_size(COLLECTION_SIZE)
}

#[tonic::async_trait]
impl Node for Services {
    async fn readiness(&self, _: Request<ReadinessRequest>) -> Result<Response<ReadinessReply>, Status> {
        let reply = match self.pool.readiness().await {
            Ok(()) => ReadinessReply { ready: true, message: String::new() },
            Err(AddError::Refused(refusal)) => ReadinessReply { ready: false, message: refusal.message },
            Err(AddError::ShuttingDown) => {
                ReadinessReply { ready: false, message: "the node daemon is shutting down".to_owned() }
            }
        };
        Ok(Response::new(reply))
    }

    async fn confirm(&self, _: Request<ConfirmRequest>) -> Result<Response<ConfirmReply>, Status> {
        Err(Status::unimplemented("this daemon confirms no ADD"))
    }

    async fn collect(&self, request: Request<CollectRequest>) -> Result<Response<CollectReply>, Status> {
        let _permit = self.dels.acquire().await.map_err(|_| translate::closed())?;
        let asked_unix_ns = Moment::now().unix_ns();
        let request = request.into_inner();
        if request.network.is_empty() {
            return Err(Status::invalid_argument("the request names no network"));
        }
        let evidence = self.host.evidence().await.map_err(|error| Status::internal(error.to_string()))?;
        let collection = Collection {
            network: request.network,
            valid: request.valid.into_iter().map(|pod| (pod.container_id, pod.interface)).collect(),
            kernel: host::kernel_view(&evidence),
            asked_unix_ns,
        };
        let collected = self.pool.collect(collection).await;
        let collected = collected.map_err(|error| Status::unavailable(error.to_string()))?;
        let collected = collected.into_iter().map(|one| Collected {
            container_id: one.released.allocation.key.container_id().to_owned(),
            interface: one.released.allocation.key.interface().to_owned(),
            pod_namespace: one.released.allocation.pod.namespace.clone(),
            pod_name: one.released.allocation.pod.name.clone(),
            ip: one.released.allocation.address.to_string(),
            route_table: one.released.table.0,
            quarantined: one.is_quarantined,
        });
        Ok(Response::new(CollectReply { collected: collected.collect() }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let report = self.pool.report().await.ok_or_else(translate::closed)?;
        let health = self.host.health().await.unwrap_or_else(HostHealth::unknown);
        Ok(Response::new(status::status(&report, &health, self)))
    }

    async fn why(&self, request: Request<WhyRequest>) -> Result<Response<WhyReply>, Status> {
        let subject = Subject::parse(&request.get_ref().subject)
            .ok_or_else(|| Status::invalid_argument("the question names no pod and no address"))?;
        let report = self.pool.report().await.ok_or_else(translate::closed)?;
        Ok(Response::new(WhyReply {
            now_unix_ms: report.at.unix_ms_at(report.at.instant()),
            started_unix_ms: status::started(self),
            planner: Some(status::planner(&report)),
            addresses: Some(status::counts(&report.pool, report.at)),
            ..why(&report, &subject)
        }))
    }
}
