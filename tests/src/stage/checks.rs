//! What must hold on a node whatever has happened, seen with `ip`, sockets, EC2's eyes and the
//! state file.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::cloud::Request;
use lab::world::{ECHO_PORT, INTERNET_ECHO, Pod, STATE_FILE};
use serde_json::Value;

use super::{ANSWER, Stage};
use crate::until;

/// How long the daemon may take to put right what a fault has left. An ENI whose making was
/// interrupted is looked for a minute after a start.
const MENDED: Duration = Duration::from_secs(110);

/// The priority of rules to pods.
const TO_POD: u64 = 512;
/// The priority of rules from pods on secondary ENIs.
const FROM_POD: u64 = 1536;

impl Stage {
    /// What must hold once a daemon that was ended in the middle of something is back: the pods
    /// have kept their addresses, nobody's was given back, and all that EC2 holds for the node
    /// serves pods, `capacity` of them, or has been given back. At the end the pods are gone.
    ///
    /// # Errors
    /// The first that does not hold.
    pub async fn recovers(&mut self, capacity: usize) -> Result<()> {
        self.check_own_addresses().await?;
        let kept = self.allocations()?;
        for pod in self.live.values() {
            let entry = (pod.container_id().to_owned(), pod.address().to_string());
            ensure!(kept.contains(&entry), "the restart lost {}: {kept:?}", pod.label());
        }
        self.add_all("late", capacity - self.live.len()).await.context("fill the node")?;
        self.check().await?;
        self.check_own_addresses().await?;
        self.check_books()?;
        self.remove_all().await?;
        self.check().await
    }

    /// Each pod's own interface has its address and no other.
    async fn check_own_addresses(&self) -> Result<()> {
        for pod in self.live.values() {
            let links = pod.place().ip(&["-j", "-4", "addr", "show", "dev", "eth0"]).await?;
            let own: Vec<_> = links[0]["addr_info"].as_array().into_iter().flatten().collect();
            let has_it = own.len() == 1 && own[0]["local"] == pod.address().to_string();
            ensure!(has_it, "{} has {own:?}: expected {}", pod.label(), pod.address());
        }
        Ok(())
    }

    /// On a full node every address that EC2 holds for it is a pod's, and none of a pod has been
    /// given back.
    fn check_books(&self) -> Result<()> {
        let snapshot = self.cloud().snapshot();
        let in_use: BTreeSet<_> = self.live.values().map(Pod::address).collect();
        for eni in snapshot.attached(self.node().instance_id()) {
            let singles = eni.addresses.iter().filter(|it| !it.is_primary).map(|it| it.address);
            let idle: Vec<_> = singles.filter(|it| !in_use.contains(it)).collect();
            ensure!(idle.is_empty(), "no pod gets {idle:?} of {}", eni.id);
            let unused = eni.prefixes.iter().find(|it| !in_use.iter().any(|pod| it.contains(pod)));
            ensure!(unused.is_none(), "no pod gets an address of {unused:?} of {}", eni.id);
        }
        for record in self.cloud().calls() {
            let Some(Request::UnassignPrivateIpAddresses(given_back)) = &record.call.request else {
                continue;
            };
            let is_given_back = |address: &Ipv4Addr| {
                given_back.addresses.contains(address)
                    || given_back.prefixes.iter().any(|it| it.contains(address))
            };
            for (id, pod) in &self.live {
                let was_there = self.since.get(id).is_some_and(|since| *since < record.call.received);
                ensure!(
                    !(was_there && is_given_back(&pod.address())),
                    "{} of {} was given back",
                    pod.address(),
                    pod.label()
                );
            }
        }
        Ok(())
    }

    /// Everything that must hold once things have calmed down.
    ///
    /// # Errors
    /// The first that does not.
    pub async fn check(&self) -> Result<()> {
        self.check_state_file()?;
        self.check_kernel().await?;
        self.check_enis().await?;
        until("the node has no links of pods that are gone", MENDED, || async {
            Ok(self.pod_links().await? == self.live.values().map(Pod::host_veth).collect())
        })
        .await?;
        for pod in self.live.values() {
            self.check_reach(pod).await?;
        }
        Ok(())
    }

    /// The state file holds the live pods' addresses and nothing else.
    fn check_state_file(&self) -> Result<()> {
        let expected: BTreeSet<_> = self
            .live
            .values()
            .map(|pod| (pod.container_id().to_owned(), pod.address().to_string()))
            .collect();
        let found = self.allocations()?;
        ensure!(found == expected, "{STATE_FILE} holds {found:?}: expected {expected:?}");
        Ok(())
    }

    /// Container id and address of each allocation in the state file.
    ///
    /// # Errors
    /// It cannot be read, or has a container twice.
    pub fn allocations(&self) -> Result<BTreeSet<(String, String)>> {
        let file: Value =
            serde_json::from_str(&self.node().read(STATE_FILE)?).context("read the state file")?;
        let entries = file["allocations"].as_array().context("no allocations in the state file")?;
        let word = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let found: BTreeSet<_> =
            entries.iter().map(|it| (word(it, "containerID"), word(it, "ipv4"))).collect();
        ensure!(found.len() == entries.len(), "an allocation stands twice in {file}");
        Ok(found)
    }

    /// Each live pod has its rules and its route, and there are no others.
    async fn check_kernel(&self) -> Result<()> {
        let snapshot = self.cloud().snapshot();
        let mut expected = BTreeSet::new();
        for pod in self.live.values() {
            let address = pod.address();
            expected.insert(format!("rule {TO_POD} to {address} table main"));
            expected.insert(format!("route {address} dev {}", pod.host_veth()));
            let holders: Vec<_> = snapshot
                .attached(self.node().instance_id())
                .into_iter()
                .filter(|eni| {
                    eni.addresses.iter().any(|it| it.address == address && !it.is_primary)
                        || eni.prefixes.iter().any(|it| it.contains(&address))
                })
                .collect();
            let [eni] = holders.as_slice() else {
                bail!("{address} of {} belongs to {} attached ENIs", pod.label(), holders.len());
            };
            let index = eni.attachment.as_ref().map_or(0, |it| it.device_index);
            if index != 0 {
                expected.insert(format!("rule {FROM_POD} from {address} table {}", index + 1));
            }
        }
        let found = self.pod_objects().await?;
        let set: BTreeSet<_> = found.iter().cloned().collect();
        ensure!(set == expected, "the kernel holds for pods {set:#?}: expected {expected:#?}");
        ensure!(set.len() == found.len(), "an object of a pod is there twice: {found:#?}");
        Ok(())
    }

    /// The rules and routes of pods, in words.
    async fn pod_objects(&self) -> Result<Vec<String>> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let rules = self.node().ip(&["-j", "rule"]).await?;
        let routes = self.node().ip(&["-j", "route", "show", "table", "main"]).await?;
        let mut objects = Vec::new();
        for rule in rules.as_array().into_iter().flatten() {
            let table = word(&rule["table"]);
            match rule["priority"].as_u64() {
                Some(TO_POD) => {
                    objects.push(format!("rule {TO_POD} to {} table {table}", word(&rule["dst"])))
                }
                Some(FROM_POD) => {
                    objects.push(format!("rule {FROM_POD} from {} table {table}", word(&rule["src"])));
                }
                _ => {}
            }
        }
        for route in routes.as_array().into_iter().flatten() {
            if word(&route["dev"]).starts_with("eni") {
                objects.push(format!("route {} dev {}", word(&route["dst"]), word(&route["dev"])));
            }
        }
        Ok(objects)
    }

    async fn pod_links(&self) -> Result<BTreeSet<String>> {
        let links = self.node().ip(&["-j", "link"]).await?;
        let names = links.as_array().into_iter().flatten().filter_map(|it| it["ifname"].as_str());
        Ok(names.filter(|it| it.starts_with("eni")).map(str::to_owned).collect())
    }

    /// Every ENI that was made is attached, and every attached one is ready to carry pods.
    async fn check_enis(&self) -> Result<()> {
        until("no ENI is left unattached", MENDED, || async {
            Ok(self.cloud().snapshot().enis.values().all(|eni| eni.attachment.is_some()))
        })
        .await?;
        until("every attached ENI is set up on the node", MENDED, || self.are_enis_set_up()).await
    }

    async fn are_enis_set_up(&self) -> Result<bool> {
        let links = self.node().ip(&["-j", "link"]).await?;
        for eni in self.cloud().snapshot().attached(self.node().instance_id()) {
            let index = eni.attachment.as_ref().map_or(0, |it| it.device_index);
            if index == 0 {
                continue;
            }
            let mut found = links.as_array().into_iter().flatten();
            let link = found.find(|it| it["address"] == eni.mac.as_str());
            let Some(name) = link.filter(|it| it["operstate"] == "UP").map(|it| it["ifname"].clone()) else {
                return Ok(false);
            };
            let table = (index + 1).to_string();
            // A table without routes does not exist, which `ip` reports as a failure.
            let routes = self.node().ip(&["-j", "route", "show", "table", &table]).await.unwrap_or_default();
            let mut routes = routes.as_array().into_iter().flatten();
            if !routes.any(|it| it["dst"] == "default" && it["dev"] == name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The pod reaches the internet by the node's address, and the peer by its own, and back.
    async fn check_reach(&self, pod: &Pod) -> Result<()> {
        let (by_internet, _) = pod.seen_by(INTERNET_ECHO, ECHO_PORT, ANSWER).await?;
        let node = self.node().primary_ip();
        ensure!(by_internet == node, "the internet sees {} as {by_internet}: expected {node}", pod.label());
        let (by_peer, _) = pod.seen_by(self.peer.address(), ECHO_PORT, ANSWER).await?;
        let own = pod.address();
        ensure!(by_peer == own, "the other node's pod sees {} as {by_peer}: expected {own}", pod.label());
        let (by_pod, _) = self.peer.seen_by(own, ECHO_PORT, ANSWER).await?;
        let peer = self.peer.address();
        ensure!(by_pod == peer, "{} sees the other node's pod as {by_pod}: expected {peer}", pod.label());
        Ok(())
    }
}
