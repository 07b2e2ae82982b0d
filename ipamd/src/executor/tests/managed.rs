//! Which ENIs are used and changed, by their tags, as amazon-vpc-cni-k8s decides it.

use super::*;

#[tokio::test(start_paused = true)]
async fn tags_and_manage_untagged_eni_decide_which_enis_are_used() {
    // no_manage, instance_id, MANAGE_UNTAGGED_ENI, is it managed
    let rows = [
        (Some("true"), Some("i-1"), true, false),
        (Some("true"), None, false, false),
        (Some("false"), None, false, true),
        (Some("yes"), Some("i-2"), false, true),
        (None, Some("i-1"), false, true),
        (None, Some("i-2"), true, true),
        (None, None, true, true),
        (None, Some("i-2"), false, false),
        (None, None, false, false),
    ];
    for (no_manage, made_for, manages_untagged_enis, is_managed) in rows {
        let world = World::new();
        let tags: Tags = [("node.k8s.amazonaws.com/no_manage", no_manage), (INSTANCE_TAG, made_for)]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect();
        world.ec2.put(EniRecord { tags: tags.clone(), ..record("eni-2", 20, Some(SLOT)) });
        world.ec2.put(EniRecord {
            security_groups: vec!["sg-1".parse().unwrap()],
            tags,
            ..record("eni-primary", 10, Some(EniSlot::PRIMARY))
        });
        let options = ExecutorOptions { manages_untagged_enis, ..world.options() };
        let executor = world.executor_with(options);

        let enis = executor.read_inventory(Priority::Reconcile).await.unwrap();

        let found: BTreeMap<_, _> = enis.iter().map(|eni| (eni.id.as_str(), eni.is_managed)).collect();
        let wanted = BTreeMap::from([("eni-primary", true), ("eni-2", is_managed)]);
        assert_eq!(found, wanted, "{no_manage:?} {made_for:?} {manages_untagged_enis}");

        executor.put_right().await;
        let secondary = world.ec2.enis().into_iter().find(|it| it.id.as_str() == "eni-2").unwrap();
        let is_tagged = secondary.tags.get(INSTANCE_TAG).map(String::as_str) == Some("i-1");
        assert_eq!(is_tagged, is_managed || made_for == Some("i-1"), "{:?}", secondary.tags);
    }
}
