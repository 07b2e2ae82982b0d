//! Link-layer addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A link-layer address of six octets; printed in lower case with colons, as the kernel and IMDS do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

/// Why a text is not a [`Mac`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: expected six pairs of hexadecimal digits, like 02:1a:ff:00:00:01")]
pub struct MacError(String);

impl Mac {
    /// A MAC from its octets in transmission order.
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// A locally administered unicast address made of 46 of the given random bits.
    ///
    /// The host end of a veth carries such an address: set explicitly, it is left alone by
    /// udev's `MACAddressPolicy`, and the pod's permanent neighbour entry stays true.
    #[must_use]
    pub const fn local_unicast(random: [u8; 6]) -> Self {
        let mut octets = random;
        octets[0] = (octets[0] | 0x02) & !0x01;
        Self(octets)
    }

    /// The octets in transmission order.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(error());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            return Err(error());
        }
        Ok(Self(octets))
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn upper_case_is_read_and_lower_case_is_printed() {
        assert_eq!("02:1A:FF:00:00:01".parse::<Mac>().unwrap().to_string(), "02:1a:ff:00:00:01");
    }

    #[test]
    fn a_text_of_another_shape_is_refused() {
        for text in [
            "",
            "02:1a:ff:00:00",
            "02:1a:ff:00:00:01:02",
            "2:1a:ff:00:00:01",
            "02-1a-ff-00-00-01",
            "+2:1a:ff:00:00:01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(octets: [u8; 6]) {
            let mac = Mac::new(octets);
            prop_assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        }

        #[test]
        fn a_local_unicast_address_is_local_and_unicast(random: [u8; 6]) {
            let first = Mac::local_unicast(random).octets()[0];
            prop_assert_eq!(first & 0b11, 0b10);
        }
    }
}
