//! A call's way through the front door: log, credentials, faults, throttling, then work.

use std::time::Duration;

use super::bucket::ActionClass;
use super::error::Ec2Error;
use super::fault::FaultKind;
use super::log::{Call, Outcome};
use super::model::Cloud;
use super::request::{Request, Response};

/// Who signed a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    /// Access key id from the signature; `None` when there was none.
    pub access_key: Option<String>,
    /// Session token.
    pub token: Option<String>,
}

impl Caller {
    /// The person with [`super::STATIC_ACCESS_KEY`].
    pub fn person() -> Caller {
        Caller { access_key: Some(super::STATIC_ACCESS_KEY.to_owned()), token: None }
    }
}

/// A call that was taken in: what will become of it, and after how long.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The call as logged.
    pub call: Call,
    /// EC2's id of the request.
    pub request_id: String,
    /// How long it takes from here.
    pub latency: Duration,
    verdict: Verdict,
}

#[derive(Debug, Clone)]
enum Verdict {
    Work { answer_arrives: bool },
    Refuse(Ec2Error),
    Drop,
    Hang,
}

/// What the caller gets to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<T> {
    /// An answer, good or bad.
    Answer(T),
    /// The connection closes without a word.
    Closed,
    /// Nothing, ever.
    Never,
}

impl Cloud {
    /// Takes in an EC2 call. `request` is an error when the parameters could not be read, which
    /// EC2 only says to those who may call at all.
    pub fn admit(
        &mut self,
        now: Duration,
        caller: &Caller,
        action: &str,
        request: Result<&Request, &Ec2Error>,
        summary: String,
    ) -> Admission {
        self.advance(now);
        let access_key = caller.access_key.clone();
        let call = Call {
            number: self.log.next_number(),
            action: action.to_owned(),
            instance: access_key.as_deref().and_then(|key| self.keyring.owner(key)),
            access_key,
            request: request.ok().cloned(),
            summary,
            received: now,
        };
        let verdict = match self.admit_caller(now, caller) {
            Err(refused) => Verdict::Refuse(refused),
            Ok(()) => match self.faults.strike(now, &call) {
                Some(fault) => Verdict::from(fault),
                None if !self.buckets.take(now, ActionClass::of(action)) => {
                    Verdict::Refuse(Ec2Error::throttled())
                }
                None => match request {
                    Ok(_) => Verdict::Work { answer_arrives: true },
                    Err(unreadable) => Verdict::Refuse(unreadable.clone()),
                },
            },
        };
        self.take_in(call, verdict)
    }

    /// Takes in a request to the IMDS of `instance`.
    pub fn admit_imds(&mut self, now: Duration, instance: &str, summary: String) -> Admission {
        self.advance(now);
        let call = Call {
            number: self.log.next_number(),
            action: super::IMDS.to_owned(),
            instance: Some(instance.to_owned()),
            access_key: None,
            request: None,
            summary,
            received: now,
        };
        let fault = self.faults.strike(now, &call);
        self.take_in(call, fault.map_or(Verdict::Work { answer_arrives: true }, Verdict::from))
    }

    fn take_in(&mut self, call: Call, verdict: Verdict) -> Admission {
        let latency = self.latencies.draw(&call.action, &mut self.dice);
        let request_id = self.dice.uuid();
        self.log.receive(call.clone());
        Admission { call, request_id, latency, verdict }
    }

    fn admit_caller(&self, now: Duration, caller: &Caller) -> Result<(), Ec2Error> {
        let Some(access_key) = &caller.access_key else {
            return Err(Ec2Error::new(
                "MissingAuthenticationToken",
                "Request is missing Authentication Token",
            ));
        };
        self.keyring.check(now, access_key, caller.token.as_deref()).map(|_| ())
    }

    /// Does what was decided at admission, with `work` as the work to be done, and logs the end.
    pub fn settle<T>(
        &mut self,
        now: Duration,
        admission: Admission,
        work: impl FnOnce(&mut Cloud, Duration) -> Result<T, Ec2Error>,
    ) -> Reply<Result<T, Ec2Error>> {
        self.advance(now);
        let (reply, outcome) = match admission.verdict {
            Verdict::Refuse(error) => {
                let outcome = Outcome::Error(error.code.to_string());
                (Reply::Answer(Err(error)), outcome)
            }
            Verdict::Drop => (Reply::Closed, Outcome::Dropped),
            Verdict::Hang => (Reply::Never, Outcome::Hung),
            Verdict::Work { answer_arrives: false } => {
                // The caller never learns how it went, so neither does the log.
                let _ = work(self, now);
                (Reply::Closed, Outcome::AnswerLost)
            }
            Verdict::Work { answer_arrives: true } => {
                let result = work(self, now);
                let outcome = match &result {
                    Ok(_) => Outcome::Success,
                    Err(error) => Outcome::Error(error.code.to_string()),
                };
                (Reply::Answer(result), outcome)
            }
        };
        self.log.finish(now, admission.call.number, outcome);
        reply
    }

    /// One call from door to door in no time: for simulations, which add latency themselves.
    pub fn call(
        &mut self,
        now: Duration,
        caller: &Caller,
        request: &Request,
    ) -> Reply<Result<Response, Ec2Error>> {
        let admission = self.admit(now, caller, request.action(), Ok(request), format!("{request:?}"));
        self.settle(now, admission, |cloud, now| cloud.perform(now, request))
    }
}

impl From<FaultKind> for Verdict {
    fn from(fault: FaultKind) -> Verdict {
        match fault {
            FaultKind::Refuse(error) => Verdict::Refuse(error),
            FaultKind::Hang => Verdict::Hang,
            FaultKind::LoseAnswer => Verdict::Work { answer_arrives: false },
            FaultKind::Drop => Verdict::Drop,
        }
    }
}
