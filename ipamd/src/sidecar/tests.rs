//! The second file, written and read again.

use super::*;

const COOLDOWN: Duration = Duration::from_secs(30);

struct Disk(tempfile::TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join(FILE_NAME)
    }

    fn open(&self, boot: &str) -> (Sidecar, Remembered) {
        Sidecar::open(Arc::new(durable::RealDisk), self.path(), boot, Moment::now(), COOLDOWN)
    }
}

fn intent() -> EniIntent {
    EniIntent {
        slot: EniSlot::new(0, 1),
        subnet: "subnet-1".parse().unwrap(),
        ips: 9,
        prefixes: 0,
        created_unix_secs: 1_795_000_000,
        eni: None,
    }
}

fn address() -> IpAddr {
    "10.0.1.7".parse().unwrap()
}

#[test]
fn cooldowns_and_quarantine_outlive_the_process() {
    let disk = Disk::new();
    let moment = Moment::now();
    let until = moment.instant() + Duration::from_secs(20);
    let held_back = [("2001:db8::8".parse().unwrap(), QuarantineReason::KernelOnly)];
    disk.open("boot").0.record_pool(&[(address(), until)], &held_back, moment).unwrap();

    let (_, remembered) = disk.open("boot");

    assert_eq!(remembered.quarantined, held_back);
    let (cooling, back) = remembered.cooling[0];
    assert_eq!(cooling, address());
    assert!(back >= until && back <= until + Duration::from_secs(2));
}

#[test]
fn a_start_that_records_an_intent_first_forgets_no_cooldown() {
    let disk = Disk::new();
    let until = Instant::now() + COOLDOWN;
    disk.open("boot").0.record_pool(&[(address(), until)], &[], Moment::now()).unwrap();

    disk.open("boot").0.record_intent("token", intent()).unwrap();

    assert_eq!(disk.open("boot").1.cooling.len(), 1);
}

#[test]
fn a_reboot_ends_cooldowns_but_not_the_search_for_enis() {
    let disk = Disk::new();
    let (sidecar, _) = disk.open("first");
    let until = Instant::now() + COOLDOWN;
    sidecar.record_pool(&[(address(), until)], &[], Moment::now()).unwrap();
    sidecar.record_intent("token", intent()).unwrap();

    let (_, remembered) = disk.open("second");

    assert_eq!(remembered.cooling, []);
    assert!(remembered.is_of_another_boot);
    assert_eq!(remembered.intents["token"], intent());
}

#[test]
fn an_intent_is_on_disk_before_the_call_returns_and_gone_after_it_was_forgotten() {
    let disk = Disk::new();
    let (sidecar, _) = disk.open("boot");

    sidecar.record_intent("token", intent()).unwrap();
    let known = EniIntent { eni: Some("eni-1".parse().unwrap()), ..intent() };
    sidecar.record_intent("token", known.clone()).unwrap();
    assert_eq!(disk.open("boot").1.intents["token"], known);

    sidecar.forget_intent("token").unwrap();
    assert!(disk.open("boot").1.intents.is_empty());
}

fn blocks() -> Vec<Block> {
    vec![Block::Ip("10.0.1.7".parse().unwrap()), Block::Prefix("10.0.2.16/28".parse().unwrap())]
}

#[test]
fn what_ec2_may_still_take_back_is_known_to_the_next_process_for_a_while() {
    let disk = Disk::new();
    let eni: EniId = "eni-1".parse().unwrap();
    let (sidecar, _) = disk.open("boot");
    sidecar.record_return(&eni, Some(&blocks()), Moment::now()).unwrap();
    sidecar.record_return(&eni, None, Moment::now()).unwrap();

    for boot in ["boot", "after a reboot"] {
        let now = Instant::now();
        let (_, remembered) = disk.open(boot);
        let returning: Vec<_> = remembered.returning.iter().map(|it| it.blocks.clone()).collect();
        assert_eq!(returning, [Some(blocks()), None]);
        let until = remembered.returning[0].until;
        assert!(until > now + Duration::from_secs(60) && until <= Instant::now() + RETURN_TAKES);
    }

    let later = Moment::of(Instant::now(), std::time::SystemTime::now() + RETURN_TAKES);
    let (_, remembered) = Sidecar::open(Arc::new(durable::RealDisk), disk.path(), "boot", later, COOLDOWN);
    assert_eq!(remembered.returning, []);
}

#[test]
fn a_return_that_ec2_has_confirmed_leaves_the_file_with_the_next_write() {
    let disk = Disk::new();
    let eni: EniId = "eni-1".parse().unwrap();
    let (sidecar, _) = disk.open("boot");
    sidecar.record_return(&eni, Some(&blocks()), Moment::now()).unwrap();

    sidecar.settle_return(&eni, None);
    sidecar.settle_return(&eni, Some(&blocks()));
    sidecar.record_intent("token", intent()).unwrap();

    assert_eq!(disk.open("boot").1.returning, []);
}

#[test]
fn a_file_of_an_older_or_newer_release_is_read() {
    let disk = Disk::new();
    let text = r#"{"version":"vpc-cni-node/1","bootId":"boot","cooling":[],"eniIntents":{},"later":[1]}"#;
    fs::write(disk.path(), text).unwrap();

    let (sidecar, remembered) = disk.open("boot");

    assert_eq!(remembered.returning, []);
    sidecar.record_return(&"eni-1".parse().unwrap(), Some(&blocks()), Moment::now()).unwrap();
    let written = fs::read_to_string(disk.path()).unwrap();
    assert!(written.contains(r#""eni":"eni-1","blocks":["10.0.1.7","10.0.2.16/28"],"#), "{written}");
}

#[test]
fn an_intent_that_cannot_be_recorded_is_an_error_and_is_not_remembered() {
    let disk = Disk::new();
    let (sidecar, _) = disk.open("boot");
    let path = disk.path();
    drop(disk);

    assert!(sidecar.record_intent("token", intent()).is_err());
    assert!(!path.exists());
}

#[test]
fn a_damaged_or_foreign_file_counts_as_none() {
    for text in ["", "{", "[]", r#"{"version":"other/1","bootId":"boot"}"#, "\u{0}"] {
        let disk = Disk::new();
        fs::write(disk.path(), text).unwrap();

        let (sidecar, remembered) = disk.open("boot");

        assert!(remembered.cooling.is_empty() && remembered.intents.is_empty(), "{text:?}");
        sidecar.record_intent("token", intent()).unwrap();
    }
}

#[test]
fn the_same_content_is_not_written_twice() {
    let disk = Disk::new();
    let (sidecar, _) = disk.open("boot");
    sidecar.record_intent("token", intent()).unwrap();
    fs::remove_file(disk.path()).unwrap();

    sidecar.record_intent("token", intent()).unwrap();

    assert!(!disk.path().exists());
}
