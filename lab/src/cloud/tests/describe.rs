//! Filters, pages and tags.

use super::*;

fn filter(name: &str, values: &[&str]) -> Filter {
    Filter { name: name.to_owned(), values: values.iter().map(|it| (*it).to_owned()).collect() }
}

impl World {
    fn find(&mut self, filters: Vec<Filter>) -> Vec<String> {
        let request = Describe { filters, ..Describe::default() };
        match self.ask(Request::DescribeNetworkInterfaces(request)).unwrap() {
            Response::NetworkInterfaces(listing) => listing.items.iter().map(|eni| eni.id.clone()).collect(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn filters_find_leaked_enis_as_the_daemon_asks_for_them() {
    let mut world = World::new("m5.large");
    let key = "node.k8s.amazonaws.com/instance_id";
    let leak = world.create(CreateNetworkInterface {
        subnet_id: world.instance.subnet_id.clone(),
        description: "aws-K8S-i-0123".to_owned(),
        tags: [(key.to_owned(), "i-0123".to_owned())].into(),
        ..CreateNetworkInterface::default()
    });
    let used = world.eni(0);
    world.attach(&used, 1);
    let vpc = world.instance.vpc_id.clone();

    let leaks = [filter("tag-key", &[key]), filter("status", &["available"]), filter("vpc-id", &[&vpc])];
    assert_eq!(world.find(leaks.to_vec()), [leak.id.as_str()]);
    assert_eq!(world.find(vec![filter("description", &["aws-K8S-*"])]), [leak.id.as_str()]);
    assert_eq!(world.find(vec![filter(&format!("tag:{key}"), &["i-9", "i-0123"])]), [leak.id.as_str()]);
    let instance = world.instance.id.clone();
    assert_eq!(world.find(vec![filter("attachment.instance-id", &[&instance])]).len(), 2);
    assert_eq!(world.find(vec![filter("attachment.status", &["attaching"])]).len(), 0);
    let address = used.primary_ip().to_string();
    assert_eq!(world.find(vec![filter("private-ip-address", &[&address])]), [used.id.as_str()]);
}

#[test]
fn an_unknown_filter_or_id_is_refused() {
    let mut world = World::new("m5.large");
    let ask = |ids: &[&str], filters: Vec<Filter>| {
        let ids = ids.iter().map(|it| (*it).to_owned()).collect();
        Request::DescribeNetworkInterfaces(Describe { ids, filters, ..Describe::default() })
    };

    assert_eq!(world.refusal(ask(&[], vec![filter("colour", &["red"])])), "InvalidParameterValue");
    let error = world.ask(ask(&["eni-0abc"], Vec::new())).unwrap_err();
    assert_eq!(error.code, "InvalidNetworkInterfaceID.NotFound");
    assert_eq!(error.message, "The networkInterface ID 'eni-0abc' does not exist");
    assert_eq!(world.refusal(ask(&["nonsense"], Vec::new())), "InvalidNetworkInterfaceId.Malformed");
}

#[test]
fn pages_join_up_to_the_whole() {
    let mut world = World::new("m5.large");
    for _ in 0..12 {
        world.eni(0);
    }
    let all = world.find(Vec::new());
    let mut seen = Vec::new();
    let mut next_token = None;
    loop {
        let page = Page { max_results: Some(5), next_token };
        let request = Describe { page, ..Describe::default() };
        let answer = world.ask(Request::DescribeNetworkInterfaces(request)).unwrap();
        let Response::NetworkInterfaces(listing) = answer else { panic!("{answer:?}") };
        assert!(listing.items.len() <= 5);
        seen.extend(listing.items.iter().map(|eni| eni.id.clone()));
        next_token = listing.next_token;
        if next_token.is_none() {
            break;
        }
    }

    assert_eq!(seen, all);
    let bad = Page { max_results: Some(5), next_token: Some("elsewhere".to_owned()) };
    let request = Describe { page: bad, ..Describe::default() };
    assert_eq!(world.refusal(Request::DescribeNetworkInterfaces(request)), "InvalidNextToken");
    let tiny = Describe { page: Page { max_results: Some(1), next_token: None }, ..Describe::default() };
    assert_eq!(world.refusal(Request::DescribeNetworkInterfaces(tiny)), "InvalidParameterValue");
}

#[test]
fn limits_are_told_even_of_a_type_that_no_table_knows() {
    let mut world = World::new("m5.large");
    let ask = |name: &str| {
        Request::DescribeInstanceTypes(Describe { ids: vec![name.to_owned()], ..Describe::default() })
    };

    let answer = world.ask(ask("x9lab.large")).unwrap();
    let Response::InstanceTypes(listing) = answer else { panic!("{answer:?}") };
    assert_eq!((listing.items[0].enis, listing.items[0].ipv4_per_eni), (5, 7));
    assert_eq!(world.refusal(ask("m5.enormous")), "InvalidInstanceType");
}

#[test]
fn tags_are_set_found_and_kept_from_the_reserved_name() {
    let mut world = World::new("m5.large");
    let eni = world.eni(0);
    let tag = |key: &str| Request::CreateTags {
        resources: vec![eni.id.clone(), world.instance.id.clone()],
        tags: [(key.to_owned(), "blue".to_owned())].into(),
    };
    let (good, reserved) = (tag("colour"), tag("aws:colour"));

    world.ask(good).unwrap();
    assert_eq!(world.refusal(reserved), "InvalidParameterValue");
    let missing = Request::CreateTags {
        resources: vec![eni.id.clone(), "eni-0abc".to_owned()],
        tags: [("size".to_owned(), "big".to_owned())].into(),
    };
    assert_eq!(world.refusal(missing), "InvalidNetworkInterfaceID.NotFound");

    let filters = vec![filter("resource-type", &["network-interface"])];
    let answer = world.ask(Request::DescribeTags(Describe { filters, ..Describe::default() })).unwrap();
    let Response::Tags(listing) = answer else { panic!("{answer:?}") };
    let told: Vec<_> = listing.items.iter().map(|it| (it.key.as_str(), it.value.as_str())).collect();
    assert_eq!(told, [("colour", "blue")]);
}
