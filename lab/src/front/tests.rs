//! Both fronts over real connections on loopback.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::cloud::*;

struct Site {
    cloud: CloudHandle,
    instance: Arc<Instance>,
    ec2: SocketAddr,
    imds: SocketAddr,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Site {
    async fn open() -> Site {
        let cloud = CloudHandle::start(CloudBuilder::two_zones(1));
        let subnet = cloud.snapshot().subnets.values().next().unwrap().id.clone();
        let instance = cloud.run_instance("m5.large", &subnet).unwrap();
        let ec2 = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let imds = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Site {
            ec2: ec2.local_addr().unwrap(),
            imds: imds.local_addr().unwrap(),
            cloud: cloud.clone(),
            instance: instance.clone(),
        };
        tokio::spawn(serve_ec2(ec2, cloud.clone()));
        tokio::spawn(serve_imds(imds, cloud, instance.id.clone()));
        site
    }

    /// `None` when the connection closes without an answer.
    async fn send(&self, to: SocketAddr, head: &str, body: &str) -> Option<Answer> {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let length = body.len();
        let request =
            format!("{head}\r\nhost: lab\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // A reset says the same as an end of file: no answer.
        let _ = stream.read_to_string(&mut answer).await;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
    }

    async fn metadata(&self, path: &str, token: Option<&str>) -> Answer {
        let header = token.map(|it| format!("\r\nX-aws-ec2-metadata-token: {it}")).unwrap_or_default();
        self.send(self.imds, &format!("GET {path} HTTP/1.1{header}"), "").await.unwrap()
    }

    async fn token(&self) -> String {
        let head = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60";
        let answer = self.send(self.imds, head, "").await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("x-aws-ec2-metadata-token-ttl-seconds: 60"), "{}", answer.head);
        answer.body
    }

    async fn api(&self, credential: &str, extra: &str, form: &str) -> Option<Answer> {
        let head = format!(
            "POST / HTTP/1.1\r\nauthorization: AWS4-HMAC-SHA256 Credential={credential}/20260101/\
             us-west-2/ec2/aws4_request, SignedHeaders=host, Signature=0{extra}"
        );
        self.send(self.ec2, &head, &format!("Version=2016-11-15&{form}")).await
    }

    async fn ask(&self, form: &str) -> Answer {
        self.api(STATIC_ACCESS_KEY, "", form).await.unwrap()
    }
}

#[tokio::test]
async fn imds_wants_a_session_token_and_counts_its_time() {
    let site = Site::open().await;
    let path = "/latest/meta-data/instance-id";

    assert_eq!(site.metadata(path, None).await.status, 401);
    assert_eq!(site.metadata(path, Some("made-up")).await.status, 401);
    let token = site.token().await;
    let answer = site.metadata(path, Some(&token)).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, site.instance.id.as_str()));

    for bad in
        ["", "\r\nX-aws-ec2-metadata-token-ttl-seconds: 0", "\r\nX-aws-ec2-metadata-token-ttl-seconds: x"]
    {
        let head = format!("PUT /latest/api/token HTTP/1.1{bad}");
        assert_eq!(site.send(site.imds, &head, "").await.unwrap().status, 400, "{bad}");
    }
    let proxied = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\
                   X-Forwarded-For: 10.0.0.1";
    assert_eq!(site.send(site.imds, proxied, "").await.unwrap().status, 403);
    assert_eq!(site.send(site.imds, "POST /latest/meta-data/ HTTP/1.1", "").await.unwrap().status, 405);
}

#[tokio::test]
async fn imds_version_one_answers_where_it_is_allowed() {
    let site = Site::open().await;
    site.cloud.set_imds_v1(&site.instance.id, true);

    assert_eq!(site.metadata("/latest/meta-data/mac", None).await.status, 200);
    assert_eq!(site.metadata("/latest/meta-data/mac", Some("made-up")).await.status, 401);
}

#[tokio::test]
async fn imds_serves_what_the_daemon_reads_at_its_start() {
    let site = Site::open().await;
    let token = site.token().await;
    let get = async |path: &str| {
        let answer = site.metadata(path, Some(&token)).await;
        (answer.status, answer.body)
    };
    let ok = |text: &str| (200, text.to_owned());
    let eni = site.cloud.snapshot().enis[&site.instance.primary_eni].clone();
    let subnet = site.cloud.snapshot().subnets[&eni.subnet_id].clone();
    let of = |field: &str| format!("/latest/meta-data/network/interfaces/macs/{}/{field}", eni.mac);

    let document: serde_json::Value =
        serde_json::from_str(&get("/latest/dynamic/instance-identity/document").await.1).unwrap();
    assert_eq!(document["region"], "us-west-2");
    assert_eq!(document["instanceType"], "m5.large");
    assert_eq!(get("/latest/meta-data/placement/availability-zone").await, ok(&subnet.zone));
    assert_eq!(get("/latest/meta-data/placement/region").await, ok("us-west-2"));
    assert_eq!(get("/latest/meta-data/local-ipv4").await, ok(&eni.primary_ip().to_string()));
    assert_eq!(get("/latest/meta-data/instance-type").await, ok("m5.large"));
    assert_eq!(get("/latest/meta-data/mac").await, ok(&eni.mac));
    assert_eq!(get("/latest/meta-data/security-groups").await, ok("default"));
    assert_eq!(get("/latest/meta-data/network/interfaces/macs/").await, ok(&format!("{}/", eni.mac)));
    assert_eq!(get(&of("device-number")).await, ok("0"));
    assert_eq!(get(&of("interface-id")).await, ok(&eni.id));
    assert_eq!(get(&of("subnet-id")).await, ok(&subnet.id));
    assert_eq!(get(&of("vpc-id")).await, ok(&eni.vpc_id));
    assert_eq!(get(&of("security-group-ids")).await, ok(&eni.groups.join("\n")));
    assert_eq!(get(&of("subnet-ipv4-cidr-block")).await, ok(&subnet.cidr.to_string()));
    assert_eq!(get(&of("vpc-ipv4-cidr-blocks")).await, ok("10.0.0.0/16"));
    assert_eq!(get(&of("ipv4-prefix")).await.0, 404);
    assert_eq!(get(&of("subnet-ipv6-cidr-blocks")).await.0, 404);
    assert_eq!(get("/latest/meta-data/ipv6").await.0, 404);
    assert!(get("/latest/meta-data/hostname").await.1.ends_with(".us-west-2.compute.internal"));
}

#[tokio::test]
async fn credentials_from_imds_open_ec2_until_they_end() {
    let site = Site::open().await;
    let token = site.token().await;
    let role = site.metadata("/latest/meta-data/iam/security-credentials/", Some(&token)).await.body;
    let path = format!("/latest/meta-data/iam/security-credentials/{role}");
    let text = site.metadata(&path, Some(&token)).await.body;
    let credentials: serde_json::Value = serde_json::from_str(&text).unwrap();
    let key = credentials["AccessKeyId"].as_str().unwrap();
    let session = format!("\r\nx-amz-security-token: {}", credentials["Token"].as_str().unwrap());

    let answer = site.api(key, &session, "Action=DescribeSubnets").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(site.cloud.counts_of(&site.instance.id)["DescribeSubnets"].succeeded, 1);
    site.cloud.expire_credentials(&site.instance.id);
    let answer = site.api(key, &session, "Action=DescribeSubnets").await.unwrap();

    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("<Code>RequestExpired</Code>"), "{}", answer.body);
}

#[tokio::test]
async fn ec2_refuses_in_its_own_words_and_status() {
    let site = Site::open().await;
    let check = async |answer: Option<Answer>, status: u16, code: &str| {
        let answer = answer.unwrap();
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.body.contains(&format!("<Response><Errors><Error><Code>{code}</Code><Message>")));
        assert!(answer.body.contains("</Message></Error></Errors><RequestID>"));
        assert!(answer.head.contains("content-type: text/xml"));
    };

    check(Some(site.ask("Action=DescribeMoon").await), 400, "InvalidAction").await;
    check(Some(site.ask("Action=CreateNetworkInterface").await), 400, "MissingParameter").await;
    check(Some(site.ask("Action=DescribeSubnets&Colour=red").await), 400, "UnknownParameter").await;
    check(Some(site.ask("Action=DescribeSubnets&DryRun=true").await), 412, "DryRunOperation").await;
    check(site.api("AKIAWHO", "", "Action=DescribeSubnets").await, 401, "AuthFailure").await;
    let unsigned = site.send(site.ec2, "POST / HTTP/1.1", "Version=2016-11-15&Action=DescribeSubnets").await;
    check(unsigned, 403, "MissingAuthenticationToken").await;
    site.cloud.fault(Fault::on("DescribeSubnets").throttle().times(1));
    check(Some(site.ask("Action=DescribeSubnets").await), 503, "RequestLimitExceeded").await;
    site.cloud.fault(Fault::on("DescribeSubnets").deny().times(1));
    check(Some(site.ask("Action=DescribeSubnets").await), 403, "UnauthorizedOperation").await;
}

#[tokio::test]
async fn a_lost_answer_closes_the_connection_after_the_work() {
    let site = Site::open().await;
    site.cloud.fault(Fault::on("CreateNetworkInterface").lose_answer().times(1));
    let form = format!("Action=CreateNetworkInterface&SubnetId={}", site.instance.subnet_id);

    assert!(site.api(STATIC_ACCESS_KEY, "", &form).await.is_none());

    assert_eq!(site.cloud.snapshot().enis.len(), 2);
    assert_eq!(site.cloud.calls().last().unwrap().outcome, Some(Outcome::AnswerLost));
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_undo_its_request() {
    let site = Site::open().await;
    let gate = site.cloud.gate("CreateNetworkInterface", GatePoint::BeforeWork);
    let form = format!("Action=CreateNetworkInterface&SubnetId={}", site.instance.subnet_id);
    {
        let call = site.api(STATIC_ACCESS_KEY, "", &form);
        tokio::select! {
            _ = call => panic!("the gate should hold the call"),
            () = gate.arrived(1) => {}
        }
    }

    gate.open();
    site.cloud.completed("CreateNetworkInterface", 1).await;

    assert_eq!(site.cloud.snapshot().enis.len(), 2);
}

#[tokio::test]
async fn a_fault_on_imds_reaches_its_clients() {
    let site = Site::open().await;
    site.cloud.set_imds_v1(&site.instance.id, true);
    site.cloud.fault(Fault::on(IMDS).when(|call| call.summary.ends_with("/mac")).times(1));

    assert_eq!(site.metadata("/latest/meta-data/instance-id", None).await.status, 200);
    assert_eq!(site.metadata("/latest/meta-data/mac", None).await.status, 500);
    assert_eq!(site.metadata("/latest/meta-data/mac", None).await.status, 200);
}

#[tokio::test]
async fn the_fronts_stand_alone() {
    let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let instance_type = "x9lab.large".to_owned();
    let options = Standalone { ec2: anywhere, imds: anywhere, instance_type, seed: 3 };
    let (tell, told) = tokio::sync::oneshot::channel();
    let ready = move |cloud: &CloudHandle, id: &str, ec2, imds| {
        let instance = cloud.snapshot().instances[id].clone();
        tell.send(Site { cloud: cloud.clone(), instance, ec2, imds }).ok().unwrap();
    };
    let serving = tokio::spawn(standalone(options, ready));
    let site = told.await.unwrap();

    let token = site.token().await;
    let answer = site.metadata("/latest/meta-data/instance-type", Some(&token)).await;
    assert_eq!(answer.body, "x9lab.large");
    assert_eq!(site.ask("Action=DescribeInstances").await.status, 200);

    serving.abort();
    let unknown =
        Standalone { ec2: anywhere, imds: anywhere, instance_type: "m5.nonsense".to_owned(), seed: 3 };
    let error = standalone(unknown, |_, _, _, _| ()).await.unwrap_err();
    assert!(format!("{error:#}").starts_with("start an instance of type m5.nonsense: "), "{error:#}");
}
