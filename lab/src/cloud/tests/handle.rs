//! The world under the clock; paused, so that no test waits for real.

use super::*;

fn start() -> (CloudHandle, Arc<Instance>) {
    let cloud = CloudHandle::start(CloudBuilder::two_zones(1));
    let subnet = cloud.with(|it, _| first_subnet(it));
    let instance = cloud.run_instance("m5.large", &subnet).unwrap();
    (cloud, instance)
}

fn create(instance: &Instance) -> Request {
    let subnet_id = instance.subnet_id.clone();
    Request::CreateNetworkInterface(CreateNetworkInterface { subnet_id, ..Default::default() })
}

#[tokio::test(start_paused = true)]
async fn a_gate_holds_a_call_before_its_work_until_released() {
    let (cloud, instance) = start();
    let gate = cloud.gate("CreateNetworkInterface", GatePoint::BeforeWork);
    let call = tokio::spawn({
        let (cloud, request) = (cloud.clone(), create(&instance));
        async move { cloud.ask(request).await }
    });

    gate.arrived(1).await;
    cloud.received("CreateNetworkInterface", 1).await;
    assert_eq!(cloud.snapshot().enis.len(), 1);
    assert_eq!(cloud.counts()["CreateNetworkInterface"].completed, 0);
    gate.let_through(1);
    call.await.unwrap().unwrap();

    assert_eq!(cloud.snapshot().enis.len(), 2);
    cloud.completed("CreateNetworkInterface", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_gate_before_the_answer_leaves_the_work_done() {
    let (cloud, instance) = start();
    let gate = cloud.gate("CreateNetworkInterface", GatePoint::BeforeAnswer);
    let call = tokio::spawn({
        let (cloud, request) = (cloud.clone(), create(&instance));
        async move { cloud.ask(request).await }
    });

    gate.arrived(1).await;
    assert_eq!(cloud.snapshot().enis.len(), 2);
    assert!(!call.is_finished());
    drop(gate);
    call.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn ec2_finishes_the_work_of_a_caller_that_died() {
    let (cloud, instance) = start();
    let gate = cloud.gate("CreateNetworkInterface", GatePoint::BeforeWork);
    let call = tokio::spawn({
        let (cloud, request) = (cloud.clone(), create(&instance));
        async move { cloud.ask(request).await }
    });
    gate.arrived(1).await;

    call.abort();
    gate.open();
    cloud.completed("CreateNetworkInterface", 1).await;

    assert_eq!(cloud.snapshot().enis.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn watchers_hear_of_an_attachment_that_completes_by_itself() {
    let (cloud, instance) = start();
    cloud.set_attach_delay(Duration::from_secs(5));
    let Response::Created { eni, .. } = cloud.ask(create(&instance)).await.unwrap() else { panic!() };
    cloud
        .ask(Request::AttachNetworkInterface(AttachNetworkInterface {
            eni_id: eni.id.clone(),
            instance_id: instance.id.clone(),
            device_index: 1,
            network_card: 0,
        }))
        .await
        .unwrap();
    let mut changed = cloud.changed();
    changed.mark_unchanged();
    assert_eq!(cloud.snapshot().attached(&instance.id).len(), 1);

    changed.changed().await.unwrap();

    assert_eq!(cloud.snapshot().attached(&instance.id).len(), 2);
    assert_eq!(cloud.now().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_action_takes_the_time_it_is_given() {
    let (cloud, instance) = start();
    cloud.set_latency("CreateNetworkInterface", Duration::from_millis(700));
    let before = cloud.now();

    cloud.ask(create(&instance)).await.unwrap();
    cloud.ask(Request::DescribeSubnets(Describe::default())).await.unwrap();

    let took = cloud.now() - before;
    assert!((700..710).contains(&took.as_millis()), "{took:?}");
    let records = cloud.calls();
    let took = records[0].completed.unwrap() - records[0].call.received;
    assert!(took >= Duration::from_millis(700), "{took:?}");
}
