//! Credentials that are kept until shortly before their end, or until EC2 rejects them.
//!
//! The SDK's own cache keeps them until their end come what may: a session that is revoked, or
//! that a wrong clock gave too long a life, would then be used for hours.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, Result, SharedCredentialsProvider, future};
use tokio::sync::Mutex;

/// How long before their end credentials are asked for anew; a request signed until then has
/// time to arrive.
const MARGIN: Duration = Duration::from_secs(60);

/// A provider in front of the chain that really finds credentials. Clones share what is kept.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    chain: SharedCredentialsProvider,
    kept: Arc<Mutex<Option<Credentials>>>,
}

impl Kept {
    pub(super) fn new(chain: impl ProvideCredentials + 'static) -> Self {
        Self { chain: SharedCredentialsProvider::new(chain), kept: Arc::default() }
    }

    /// Asks the chain again at the next request.
    pub(super) async fn forget(&self) {
        *self.kept.lock().await = None;
    }

    async fn current(&self) -> Result {
        // Held while the chain is asked, so that requests at one time ask it once.
        let mut kept = self.kept.lock().await;
        let now = SystemTime::now();
        if let Some(credentials) = kept.as_ref().filter(|held| is_good(held, now + MARGIN)) {
            return Ok(credentials.clone());
        }
        match self.chain.provide_credentials().await {
            Ok(credentials) => Ok(kept.insert(credentials).clone()),
            // Old ones that are still good beat none.
            Err(error) => match kept.as_ref().filter(|held| is_good(held, now)) {
                Some(credentials) => Ok(credentials.clone()),
                None => Err(error),
            },
        }
    }
}

fn is_good(credentials: &Credentials, at: SystemTime) -> bool {
    credentials.expiry().is_none_or(|end| at < end)
}

impl ProvideCredentials for Kept {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.current())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Gives numbered credentials with the life that it was made for.
    #[derive(Debug, Clone)]
    struct Chain {
        asked: Arc<AtomicU32>,
        life: Duration,
    }

    impl ProvideCredentials for Chain {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            let end = SystemTime::now() + self.life;
            future::ProvideCredentials::ready(Ok(Credentials::new(
                format!("key-{number}"),
                "s",
                None,
                Some(end),
                "test",
            )))
        }
    }

    fn kept(life: Duration) -> Kept {
        Kept::new(Chain { asked: Arc::default(), life })
    }

    async fn key(kept: &Kept) -> String {
        kept.provide_credentials().await.unwrap().access_key_id().to_owned()
    }

    #[tokio::test]
    async fn good_credentials_are_asked_for_once() {
        let kept = kept(Duration::from_secs(3600));

        assert_eq!(key(&kept).await, "key-0");
        assert_eq!(key(&kept.clone()).await, "key-0");
    }

    #[tokio::test]
    async fn credentials_near_their_end_are_replaced() {
        let kept = kept(MARGIN / 2);

        assert_eq!(key(&kept).await, "key-0");
        assert_eq!(key(&kept).await, "key-1");
    }

    #[tokio::test]
    async fn rejected_credentials_are_replaced_at_the_next_request() {
        let kept = kept(Duration::from_secs(3600));
        key(&kept).await;

        kept.forget().await;

        assert_eq!(key(&kept).await, "key-1");
    }
}
