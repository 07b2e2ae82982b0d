//! The model as its callers see it.

mod addresses;
mod attachments;
mod describe;
mod handle;
mod invariants;
mod ipv6;
mod troubles;

use std::sync::Arc;
use std::time::Duration;

use super::*;

/// A world with one instance, and the time.
struct World {
    cloud: Cloud,
    now: Duration,
    instance: Arc<Instance>,
}

impl World {
    fn new(instance_type: &str) -> World {
        World::of(CloudBuilder::two_zones(1), instance_type)
    }

    fn of(builder: CloudBuilder, instance_type: &str) -> World {
        let mut cloud = builder.build();
        let subnet = first_subnet(&cloud);
        let spec = LaunchSpec {
            instance_type: instance_type.to_owned(),
            subnet_id: subnet,
            ..LaunchSpec::default()
        };
        let instance = cloud.run_instance(Duration::ZERO, spec).unwrap();
        World { cloud, now: Duration::ZERO, instance }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn ask(&mut self, request: Request) -> Result<Response, Ec2Error> {
        self.cloud.perform(self.now, &request)
    }

    /// The error code of a request that must fail.
    fn refusal(&mut self, request: Request) -> String {
        self.ask(request).unwrap_err().code.to_string()
    }

    fn create(&mut self, request: CreateNetworkInterface) -> Arc<Eni> {
        match self.ask(Request::CreateNetworkInterface(request)).unwrap() {
            Response::Created { eni, .. } => eni,
            other => panic!("{other:?}"),
        }
    }

    /// An ENI in the instance's subnet with so many secondary addresses.
    fn eni(&mut self, secondary_count: u16) -> Arc<Eni> {
        let subnet_id = self.instance.subnet_id.clone();
        let secondary_count = Some(secondary_count).filter(|it| *it > 0);
        self.create(CreateNetworkInterface {
            subnet_id,
            secondary_count,
            ..CreateNetworkInterface::default()
        })
    }

    fn attach_request(&self, eni: &Eni, card: u16, index: u16) -> Request {
        Request::AttachNetworkInterface(AttachNetworkInterface {
            eni_id: eni.id.clone(),
            instance_id: self.instance.id.clone(),
            device_index: index,
            network_card: card,
        })
    }

    /// Attaches and gives the attachment id.
    fn attach(&mut self, eni: &Eni, index: u16) -> String {
        match self.ask(self.attach_request(eni, 0, index)).unwrap() {
            Response::Attached { attachment_id, .. } => attachment_id,
            other => panic!("{other:?}"),
        }
    }

    fn current(&self, id: &str) -> Arc<Eni> {
        self.cloud.snapshot().enis[id].clone()
    }

    fn free(&self) -> u32 {
        self.cloud.snapshot().subnets[&self.instance.subnet_id].available
    }

    fn imds(&mut self, path: &str) -> Result<String, u16> {
        let id = self.instance.id.clone();
        self.cloud.imds_get(self.now, &id, path).map_err(|error| error.status)
    }
}

fn first_subnet(cloud: &Cloud) -> String {
    cloud.snapshot().subnets.values().min_by_key(|it| it.cidr).unwrap().id.clone()
}

fn assign(eni: &Eni) -> AssignPrivateIpAddresses {
    AssignPrivateIpAddresses { eni_id: eni.id.clone(), ..AssignPrivateIpAddresses::default() }
}
