//! Faults on request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::Ec2Error;
use super::log::Call;

type When = Arc<dyn Fn(&Call) -> bool + Send + Sync>;

/// Something that shall go wrong: with which action, how, how often, how long and when.
///
/// ```
/// use lab::cloud::Fault;
/// let once = Fault::on("AttachNetworkInterface").error("InternalError").times(1);
/// let nodes = Fault::on("*").throttle().when(|call| call.instance.is_some());
/// ```
#[derive(Clone)]
pub struct Fault {
    pub(super) action: String,
    pub(super) kind: FaultKind,
    pub(super) times: Option<u32>,
    pub(super) lasting: Option<Duration>,
    pub(super) when: Option<When>,
}

/// How a call goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing is done and this error is answered.
    Refuse(Ec2Error),
    /// The request is taken and nothing ever comes back.
    Hang,
    /// The work is done, then the connection closes without an answer.
    LoseAnswer,
    /// The connection closes without work or answer.
    Drop,
}

impl Fault {
    /// Concerns `action`; `*` stands for every EC2 action, [`super::IMDS`] for IMDS requests.
    /// Until told how, it answers `InternalError`.
    pub fn on(action: &str) -> Fault {
        let error = Ec2Error::new("InternalError", "An internal error has occurred");
        let kind = FaultKind::Refuse(error);
        Fault { action: action.to_owned(), kind, times: None, lasting: None, when: None }
    }

    /// Answers an error code.
    pub fn error(self, code: &'static str) -> Fault {
        self.refuse(Ec2Error::new(code, "This error was asked for by the test."))
    }

    /// Answers this error.
    pub fn refuse(mut self, error: Ec2Error) -> Fault {
        self.kind = FaultKind::Refuse(error);
        self
    }

    /// Answers `RequestLimitExceeded`.
    pub fn throttle(self) -> Fault {
        self.refuse(Ec2Error::throttled())
    }

    /// Answers `UnauthorizedOperation`.
    pub fn deny(self) -> Fault {
        let error = Ec2Error::unauthorized(&self.action);
        self.refuse(error)
    }

    /// Answers `RequestExpired`, EC2's word for expired sessions.
    pub fn expired(self) -> Fault {
        self.refuse(Ec2Error::request_expired())
    }

    /// Answers `ExpiredToken`, the word of other AWS services for the same.
    pub fn expired_token(self) -> Fault {
        self.refuse(Ec2Error::new("ExpiredToken", "The security token included in the request is expired"))
    }

    /// Answers `AuthFailure`.
    pub fn auth_failure(self) -> Fault {
        self.refuse(Ec2Error::auth_failure())
    }

    /// Never answers.
    pub fn hang(mut self) -> Fault {
        self.kind = FaultKind::Hang;
        self
    }

    /// Does the work, then closes the connection.
    pub fn lose_answer(mut self) -> Fault {
        self.kind = FaultKind::LoseAnswer;
        self
    }

    /// Closes the connection before any work.
    pub fn drop_request(mut self) -> Fault {
        self.kind = FaultKind::Drop;
        self
    }

    /// At most so many times.
    pub fn times(mut self, times: u32) -> Fault {
        self.times = Some(times);
        self
    }

    /// From its installation for so long.
    pub fn lasting(mut self, lasting: Duration) -> Fault {
        self.lasting = Some(lasting);
        self
    }

    /// Only for calls that `when` accepts.
    pub fn when(mut self, when: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Fault {
        self.when = Some(Arc::new(when));
        self
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("action", &self.action)
            .field("kind", &self.kind)
            .field("times", &self.times)
            .field("lasting", &self.lasting)
            .field("has_condition", &self.when.is_some())
            .finish()
    }
}

/// Names an installed fault, to take it away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(u64);

#[derive(Debug)]
struct Installed {
    id: FaultId,
    fault: Fault,
    left: Option<u32>,
    until: Option<Duration>,
}

/// The faults in force, the oldest first; the first that fits is the one that happens.
#[derive(Debug, Default)]
pub(super) struct Faults {
    installed: Vec<Installed>,
    next: u64,
}

impl Faults {
    pub(super) fn add(&mut self, now: Duration, fault: Fault) -> FaultId {
        self.next += 1;
        let id = FaultId(self.next);
        let until = fault.lasting.map(|lasting| now + lasting);
        self.installed.push(Installed { id, left: fault.times, until, fault });
        id
    }

    pub(super) fn remove(&mut self, id: FaultId) {
        self.installed.retain(|it| it.id != id);
    }

    pub(super) fn clear(&mut self) {
        self.installed.clear();
    }

    /// The fault that befalls `call` at `now`; counts it as used.
    pub(super) fn strike(&mut self, now: Duration, call: &Call) -> Option<FaultKind> {
        self.installed.retain(|it| it.left != Some(0) && it.until.is_none_or(|until| now < until));
        let hit = self.installed.iter_mut().find(|it| {
            let everything = it.fault.action == "*" && call.action != super::IMDS;
            (everything || it.fault.action == call.action)
                && it.fault.when.as_ref().is_none_or(|when| when(call))
        })?;
        hit.left = hit.left.map(|left| left - 1);
        Some(hit.fault.kind.clone())
    }
}
