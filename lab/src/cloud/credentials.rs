//! Access keys: static ones for people and sessions of instance roles.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Ec2Error;
use super::ids::Dice;

/// A key pair, with a session token and an end when it belongs to a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AKIA…` for people, `ASIA…` for sessions.
    pub access_key: String,
    /// The secret; nothing here checks signatures, so any would do.
    pub secret_key: String,
    /// Session token.
    pub token: Option<String>,
    /// When it was issued.
    pub issued: Duration,
    /// When it ends.
    pub expires: Option<Duration>,
    /// The instance whose role it is.
    pub instance_id: Option<String>,
}

/// What IMDS does when asked for the role's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoleCredentials {
    /// Valid ones, replaced five minutes before their end.
    #[default]
    Rotating,
    /// The last ones, expired or not.
    Stale,
    /// None: the role answers 404.
    Missing,
}

/// IMDS hands out new credentials when the old ones have less time left than this.
const ROTATE_BEFORE_END: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(super) struct Keyring {
    pub(super) lifetime: Duration,
    pub(super) mode: RoleCredentials,
    keys: BTreeMap<String, Credentials>,
    current: BTreeMap<String, String>,
}

impl Keyring {
    pub(super) fn new() -> Keyring {
        Keyring {
            lifetime: Duration::from_secs(6 * 3600),
            mode: RoleCredentials::default(),
            keys: BTreeMap::new(),
            current: BTreeMap::new(),
        }
    }

    pub(super) fn add_static(&mut self, access_key: &str, secret_key: &str) {
        let credentials = Credentials {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            token: None,
            issued: Duration::ZERO,
            expires: None,
            instance_id: None,
        };
        self.keys.insert(access_key.to_owned(), credentials);
    }

    /// What IMDS hands out at `now` for the role of `instance`.
    pub(super) fn for_instance(
        &mut self,
        now: Duration,
        instance: &str,
        dice: &mut Dice,
    ) -> Option<Credentials> {
        let current = self.current.get(instance).and_then(|key| self.keys.get(key));
        let is_fresh = |it: &&Credentials| it.expires.is_none_or(|end| end > now + self.rotation_margin());
        match (self.mode, current) {
            (RoleCredentials::Missing, _) => return None,
            (RoleCredentials::Stale, Some(current)) => return Some(current.clone()),
            (RoleCredentials::Rotating, Some(current)) if is_fresh(&current) => return Some(current.clone()),
            _ => {}
        }
        let credentials = Credentials {
            access_key: format!("ASIA{}", dice.key(16)),
            secret_key: dice.key(40),
            token: Some(dice.key(64)),
            issued: now,
            expires: Some(now + self.lifetime),
            instance_id: Some(instance.to_owned()),
        };
        // Sessions that ended long ago are of no use to anyone; the pile stays small.
        self.keys.retain(|_, it| it.expires.is_none_or(|end| end + Duration::from_secs(3600) > now));
        self.current.insert(instance.to_owned(), credentials.access_key.clone());
        self.keys.insert(credentials.access_key.clone(), credentials.clone());
        Some(credentials)
    }

    /// Five minutes, or less when sessions are so short that five minutes would never do.
    fn rotation_margin(&self) -> Duration {
        ROTATE_BEFORE_END.min(self.lifetime / 4)
    }

    /// Ends every session of `instance` at `now`.
    pub(super) fn expire(&mut self, now: Duration, instance: &str) {
        for credentials in self.keys.values_mut() {
            if credentials.instance_id.as_deref() == Some(instance) {
                credentials.expires = Some(now);
            }
        }
    }

    /// Whether a request signed with `access_key` and `token` is let in, and as whom.
    pub(super) fn check(
        &self,
        now: Duration,
        access_key: &str,
        token: Option<&str>,
    ) -> Result<Option<String>, Ec2Error> {
        let credentials = self.keys.get(access_key).ok_or_else(Ec2Error::auth_failure)?;
        if credentials.token.as_deref() != token {
            return Err(Ec2Error::auth_failure());
        }
        if credentials.expires.is_some_and(|end| end <= now) {
            return Err(Ec2Error::request_expired());
        }
        Ok(credentials.instance_id.clone())
    }

    /// The instance that a key belongs to, valid or not.
    pub(super) fn owner(&self, access_key: &str) -> Option<String> {
        self.keys.get(access_key)?.instance_id.clone()
    }
}
