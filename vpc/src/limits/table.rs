//! The table of instance types, sorted by name.

use std::borrow::Cow;

use super::{Hypervisor, InstanceLimits};

static TABLE: &[(&str, InstanceLimits)] = include!(concat!(env!("OUT_DIR"), "/instance_types.rs"));

pub(super) fn find(instance_type: &str) -> Option<&'static InstanceLimits> {
    let index = TABLE.binary_search_by(|(name, _)| (*name).cmp(instance_type)).ok()?;
    TABLE.get(index).map(|(_, limits)| limits)
}

pub(super) fn all() -> impl ExactSizeIterator<Item = (&'static str, &'static InstanceLimits)> {
    TABLE.iter().map(|(name, limits)| (*name, limits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(name: &str) -> &'static InstanceLimits {
        InstanceLimits::of(name).unwrap_or_else(|| panic!("{name} is not in the table"))
    }

    #[test]
    fn well_known_types_have_their_documented_limits() {
        for (name, enis, ipv4, vcpus) in [
            ("m5.large", 3, 10, 2),
            ("t3.small", 3, 4, 2),
            ("t3.large", 3, 12, 2),
            ("c5.large", 3, 10, 2),
            ("c5.4xlarge", 8, 30, 16),
            ("p3dn.24xlarge", 15, 50, 96),
        ] {
            let limits = limits(name);
            assert_eq!((limits.enis, limits.ipv4_per_eni, limits.vcpus), (enis, ipv4, vcpus), "{name}");
            assert_eq!(limits.cards.as_ref(), [enis], "{name}");
        }
    }

    #[test]
    fn a_type_with_many_cards_counts_the_enis_of_its_default_card() {
        let p4d = limits("p4d.24xlarge");
        assert_eq!((p4d.enis, p4d.ipv4_per_eni, p4d.cards.as_ref()), (15, 50, &[15; 4][..]));
        let p5 = limits("p5.48xlarge");
        assert_eq!((p5.enis, p5.ipv4_per_eni, p5.cards.as_ref()), (2, 50, &[2; 32][..]));
    }

    #[test]
    fn nitro_and_bare_metal_take_prefixes_and_xen_does_not() {
        assert!(limits("m5.large").supports_prefixes());
        assert!(limits("m5.metal").supports_prefixes());
        assert!(!limits("m4.large").supports_prefixes());
    }

    #[test]
    fn retired_types_are_still_known() {
        for name in ["p3.2xlarge", "g4ad.xlarge", "f1.2xlarge", "g3s.xlarge", "p2.xlarge", "i3.metal"] {
            assert!(InstanceLimits::of(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_table_holds_every_current_type_in_the_order_of_names() {
        let names: Vec<&str> = InstanceLimits::all().map(|(name, _)| name).collect();
        assert!(names.len() >= 1390, "{} types", names.len());
        for pair in names.windows(2) {
            assert!(pair[0] < pair[1], "{} stands before {}", pair[0], pair[1]);
        }
        for name in names {
            assert!(InstanceLimits::of(name).is_some(), "{name} is not found by its name");
        }
    }

    #[test]
    fn every_type_is_sane() {
        for (name, limits) in InstanceLimits::all() {
            assert!(limits.enis >= 1 && limits.ipv4_per_eni >= 2 && limits.vcpus >= 1, "{name}: {limits:?}");
            assert_eq!(limits.cards.get(usize::from(limits.default_card)), Some(&limits.enis), "{name}");
        }
    }

    #[test]
    fn strangers_are_not_found() {
        for name in ["", "m5", "m5.largest", "M5.LARGE", "zzz.metal", "m5.large "] {
            assert_eq!(InstanceLimits::of(name), None, "{name:?}");
        }
    }
}
