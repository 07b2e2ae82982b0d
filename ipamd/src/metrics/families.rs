//! The families of metrics, and how a report becomes their values.

use std::sync::{Mutex, PoisonError};

use datapath::host::ChangeKind;
use prometheus::{
    Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
    register_gauge_vec_with_registry, register_gauge_with_registry, register_int_counter_vec_with_registry,
    register_int_gauge_vec_with_registry, register_int_gauge_with_registry,
};
use vpc::{EniKind, Family};

use crate::host::HostHealth;
use crate::pool::{AddressState, EniReport, PoolReport};
use crate::report::Report;

/// The addresses of an IPv6 prefix, a /80.
const IPV6_PREFIX: f64 = 281_474_976_710_656.0;

/// Handles to every family. Those named `awscni_` mean what they mean in amazon-vpc-cni-k8s.
#[derive(Debug)]
pub(super) struct Families {
    registry: Registry,
    /// Of pods' addresses.
    family: Family,
    eni_allocated: IntGauge,
    eni_max: IntGauge,
    ip_max: IntGauge,
    total_addresses: Gauge,
    assigned_addresses: IntGauge,
    ipv4_prefixes: IntGauge,
    assigned_per_eni: IntGaugeVec,
    addresses: GaugeVec,
    waiting_pods: IntGauge,
    subnet_free: IntGaugeVec,
    subnet_free_prefixes: IntGaugeVec,
    repairs: IntCounterVec,
    contested: IntGauge,
    faulty: IntGauge,
    /// Held while values change and are read: two scrapes at once must not mix.
    scrape: Mutex<()>,
}

impl Families {
    /// Every family, at 0, for a node whose pods' addresses are of `family`.
    ///
    /// # Errors
    /// Two families share a name.
    pub(super) fn new(family: Family) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name, help| register_int_gauge_with_registry!(name, help, registry);
        let gauges =
            |name, help, label| register_int_gauge_vec_with_registry!(name, help, &[label], registry);
        let build = register_int_gauge_vec_with_registry!(
            "awscni_build_info",
            "Always 1, with the daemon's version.",
            &["goversion", "version"],
            registry
        )?;
        build.with_label_values(&["", env!("CARGO_PKG_VERSION")]).set(1);
        let families = Self {
            family,
            eni_allocated: gauge("awscni_eni_allocated", "ENIs that are attached and managed.")?,
            eni_max: gauge("awscni_eni_max", "ENIs that can be attached and managed at most.")?,
            ip_max: gauge("awscni_ip_max", "Addresses for pods at most; 0 in an IPv6 cluster.")?,
            total_addresses: register_gauge_with_registry!(
                "awscni_total_ip_addresses",
                "Addresses for pods that the node holds.",
                registry
            )?,
            assigned_addresses: gauge("awscni_assigned_ip_addresses", "Addresses that pods have.")?,
            ipv4_prefixes: gauge("awscni_total_ipv4_prefixes", "IPv4 prefixes that the node holds.")?,
            assigned_per_eni: gauges(
                "awscni_assigned_ip_per_eni",
                "Addresses that pods have, by ENI.",
                "eni",
            )?,
            addresses: register_gauge_vec_with_registry!(
                "vpc_cni_addresses",
                "Addresses for pods that the node holds, by what they are doing.",
                &["state"],
                registry
            )?,
            waiting_pods: gauge("vpc_cni_waiting_pods", "Pods that wait for an address.")?,
            subnet_free: gauges(
                "vpc_cni_subnet_free_addresses",
                "Free addresses of a subnet, as EC2 last told.",
                "subnet",
            )?,
            subnet_free_prefixes: gauges(
                "vpc_cni_subnet_free_prefixes_at_most",
                "Free /28 blocks of a subnet at most; fewer if its free addresses are scattered.",
                "subnet",
            )?,
            repairs: register_int_counter_vec_with_registry!(
                "vpc_cni_network_repairs_total",
                "What was put back of the node's network, by kind.",
                &["kind"],
                registry
            )?,
            contested: gauge(
                "vpc_cni_network_contested",
                "Parts of the node's network that somebody else changes again and again.",
            )?,
            faulty: gauge(
                "vpc_cni_network_faulty",
                "1 if the node's network is not as wanted and could not be mended.",
            )?,
            scrape: Mutex::default(),
            registry,
        };
        for kind in ChangeKind::ALL {
            families.repairs.with_label_values(&[kind.as_str()]);
        }
        Ok(families)
    }

    /// Every family, with the values of `report` and `health`, in the text format.
    ///
    /// # Errors
    /// The encoder's.
    pub(super) fn text(&self, report: &Report, health: &HostHealth) -> Result<String, prometheus::Error> {
        // A panic while the lock was held leaves values that the next update replaces.
        let _scrape = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.update(report, health);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    fn update(&self, report: &Report, health: &HostHealth) {
        let pool = &report.pool;
        self.update_enis(pool);
        self.update_addresses(pool);
        self.waiting_pods.set(pool.stats.waiting.into());
        self.subnet_free.reset();
        self.subnet_free_prefixes.reset();
        for subnet in &pool.subnets {
            let label = &[subnet.id.as_str()];
            self.subnet_free.with_label_values(label).set(subnet.free_addresses.into());
            self.subnet_free_prefixes.with_label_values(label).set(subnet.free_prefixes_at_most.into());
        }
        for (kind, count) in &health.repairs {
            let counter = self.repairs.with_label_values(&[kind.as_str()]);
            counter.inc_by(count.times.saturating_sub(counter.get()));
        }
        self.contested.set(number(health.contested.len()));
        self.faulty.set(health.fault.is_some().into());
    }

    fn update_enis(&self, pool: &PoolReport) {
        let is_managed = |eni: &&EniReport| eni.is_managed && eni.kind != EniKind::EfaOnly;
        let managed = pool.enis.iter().filter(is_managed).count();
        // Those of others take slots that are not ours then.
        let eni_max = i64::from(pool.wants.eni_limit) - number(pool.enis.len() - managed);
        let per_eni = i64::from(pool.wants.address_limit.checked_div(pool.wants.eni_limit).unwrap_or(0));
        self.eni_allocated.set(number(managed));
        self.eni_max.set(eni_max.max(0));
        self.ip_max.set(if self.family == Family::V6 { 0 } else { eni_max.max(0) * per_eni });
        self.assigned_per_eni.reset();
        for eni in pool.enis.iter().filter(is_managed) {
            let assigned = eni.addresses.iter().filter(|it| matches!(it.state, AddressState::Assigned(_)));
            self.assigned_per_eni.with_label_values(&[eni.id.as_str()]).set(number(assigned.count()));
        }
    }

    fn update_addresses(&self, pool: &PoolReport) {
        let stats = &pool.stats;
        let [free, assigned, cooling, quarantined, setting_up] =
            [stats.free, stats.assigned, stats.cooling, stats.quarantined, stats.setting_up].map(f64::from);
        // The pool counts an IPv6 prefix as the largest number it has: here it is told in full.
        let (total, free, setting_up) = match self.family {
            Family::V4 => (f64::from(stats.total), free, setting_up),
            Family::V6 => {
                let held = f64::from(stats.prefixes) * IPV6_PREFIX;
                let in_no_prefix = u32::try_from(pool.pinned.len()).map_or(0.0, f64::from);
                let rest = (held + in_no_prefix - assigned - cooling - quarantined).max(0.0);
                let rest_if = |some: f64| if some > 0.0 { rest } else { 0.0 };
                (held + in_no_prefix, rest_if(free), rest_if(setting_up))
            }
        };
        self.total_addresses.set(total);
        self.assigned_addresses.set(stats.assigned.into());
        self.ipv4_prefixes.set(if self.family == Family::V4 { stats.prefixes.into() } else { 0 });
        for (state, addresses) in [
            ("free", free),
            ("assigned", assigned),
            ("cooling", cooling),
            ("quarantined", quarantined),
            ("setting_up", setting_up),
        ] {
            self.addresses.with_label_values(&[state]).set(addresses);
        }
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
