//! Pace, patience and fairness, with tokio's clock stopped.

use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const DESCRIBE: Action = Action::DescribeSubnets;
const CREATE: Action = Action::CreateNetworkInterface;
const ASSIGN: Action = Action::AssignPrivateIpAddresses;

/// A client that sends nothing by itself: what is sent is in the tests' closures.
fn paced(options: PaceOptions) -> Paced<()> {
    Paced::new((), options)
}

fn one_token(per_second: f64) -> PaceOptions {
    let rate = Rate { burst: 1, per_second };
    PaceOptions { reads: rate, changes: rate, ..PaceOptions::default() }
}

fn throttled(action: Action) -> Ec2Error {
    Ec2Error::answered(action, &"x", 503, "RequestLimitExceeded", "Request limit exceeded.")
}

fn failed(action: Action, code: &str) -> Ec2Error {
    Ec2Error::answered(action, &"x", 500, code, "")
}

/// Sends a request that fails with the errors that `fail` gives for attempts 1, 2, … and counts.
async fn send(
    at: At<()>,
    action: Action,
    fail: impl Fn(u32) -> Option<Ec2Error> + Send + Sync,
) -> (u32, Result<()>) {
    let sent = AtomicU32::new(0);
    let outcome = at
        .request(action, &"x", || {
            let number = sent.fetch_add(1, Ordering::Relaxed) + 1;
            let outcome = fail(number).map_or(Ok(()), Err);
            async { outcome }
        })
        .await;
    (sent.into_inner(), outcome)
}

#[tokio::test(start_paused = true)]
async fn a_throttled_request_is_sent_again_after_growing_pauses_until_ec2_serves_it() {
    let start = now();
    let paced = paced(PaceOptions { deadline: Duration::from_secs(60), ..PaceOptions::default() });

    let (sent, outcome) =
        send(paced.at(Priority::WarmFill), ASSIGN, |number| (number <= 4).then(|| throttled(ASSIGN))).await;

    assert_eq!((sent, outcome), (5, Ok(())));
    let took = now() - start;
    assert!(took > Duration::from_millis((500 + 1000 + 2000 + 4000) / 2), "{took:?}");
    assert!(took < Duration::from_secs(8 + 5), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn one_callers_throttling_makes_every_caller_pause() {
    let paced = paced(PaceOptions::default());
    let first = tokio::spawn(send(paced.at(Priority::WarmFill), DESCRIBE, |number| {
        (number == 1).then(|| throttled(DESCRIBE))
    }));
    while paced.throttled_until().is_none() {
        tokio::task::yield_now().await;
    }
    let until = paced.throttled_until().unwrap();

    let (sent, outcome) = send(paced.at(Priority::WaitingPod), DESCRIBE, |_| None).await;

    assert_eq!((sent, outcome), (1, Ok(())));
    assert!(now() > until);
    assert_eq!(paced.throttled_until(), None);
    assert_eq!(first.await.unwrap(), (2, Ok(())));
}

#[tokio::test(start_paused = true)]
async fn the_budget_tells_what_is_left_of_each_action_and_who_waits() {
    let paced = paced(one_token(1.0));
    send(paced.at(Priority::WarmFill), ASSIGN, |_| None).await.1.unwrap();
    let waiting = tokio::spawn(send(paced.at(Priority::WarmFill), ASSIGN, |_| None));
    tokio::task::yield_now().await;

    let budgets = paced.budgets();
    waiting.await.unwrap().1.unwrap();

    assert_eq!(budgets.len(), Action::ALL.len());
    for budget in budgets {
        let expected = if budget.action == ASSIGN { (0, 1) } else { (1, 0) };
        assert_eq!((budget.tokens, budget.waiting), expected, "{}", budget.action);
        assert_eq!((budget.rate.burst, budget.throttled_until), (1, None), "{}", budget.action);
    }
}

#[tokio::test(start_paused = true)]
async fn another_action_does_not_pause() {
    let start = now();
    let paced = paced(PaceOptions { deadline: Duration::from_millis(1), ..PaceOptions::default() });
    let (_, outcome) = send(paced.at(Priority::Sweep), DESCRIBE, |_| Some(throttled(DESCRIBE))).await;
    assert_eq!(outcome.unwrap_err().class(), &Class::Throttled);

    let (sent, outcome) = send(paced.at(Priority::WaitingPod), ASSIGN, |_| None).await;

    assert_eq!((sent, outcome, now()), (1, Ok(()), start));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_pods_request_overtakes_those_that_came_before() {
    let paced = paced(one_token(1.0));
    let order = Arc::new(Mutex::new(Vec::new()));
    send(paced.at(Priority::WarmFill), ASSIGN, |_| None).await.1.unwrap();
    let mut tasks = Vec::new();
    for (name, priority) in [
        ("sweep", Priority::Sweep),
        ("shrink", Priority::Shrink),
        ("warm 1", Priority::WarmFill),
        ("warm 2", Priority::WarmFill),
        ("pod", Priority::WaitingPod),
    ] {
        let at = paced.at(priority);
        let order = Arc::clone(&order);
        tasks.push(tokio::spawn(async move {
            at.request(ASSIGN, &name, || {
                order.lock().unwrap().push(name);
                async { Ok(()) }
            })
            .await
        }));
        tokio::task::yield_now().await;
    }

    for task in tasks {
        task.await.unwrap().unwrap();
    }

    assert_eq!(*order.lock().unwrap(), ["pod", "warm 1", "warm 2", "shrink", "sweep"]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_have_its_turn_in_time_is_refused_at_once() {
    let start = now();
    let paced = paced(one_token(0.01));
    send(paced.at(Priority::WarmFill), ASSIGN, |_| None).await.1.unwrap();

    let (sent, outcome) = send(paced.at(Priority::WaitingPod), ASSIGN, |_| None).await;

    let error = outcome.unwrap_err();
    assert_eq!((sent, error.class(), now()), (0, &Class::Timeout, start));
    assert!(!error.may_have_happened());
    assert!(error.to_string().contains("our own pace"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn throttling_that_outlasts_the_deadline_is_reported_as_throttling() {
    let start = now();
    let paced = paced(PaceOptions::default());

    let (sent, outcome) =
        send(paced.at(Priority::WaitingPod).within(Duration::from_secs(10)), ASSIGN, |_| {
            Some(throttled(ASSIGN))
        })
        .await;

    let error = outcome.unwrap_err();
    assert_eq!((error.class(), error.code()), (&Class::Throttled, Some("RequestLimitExceeded")));
    assert!(sent >= 3, "{sent}");
    assert!(now() - start <= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn an_ec2_that_never_answers_costs_no_more_than_the_deadline() {
    for (action, class) in
        [(DESCRIBE, Class::Timeout), (ASSIGN, Class::AnswerLost), (CREATE, Class::AnswerLost)]
    {
        let start = now();
        let at = paced(PaceOptions::default()).at(Priority::Reconcile).within(Duration::from_secs(3));

        let outcome: Result<()> = at.request(action, &"x", pending).await;

        assert_eq!(outcome.unwrap_err().class(), &class, "{action}");
        assert_eq!(now() - start, Duration::from_secs(3), "{action}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_is_safe_to_repeat_is_repeated() {
    for (action, code, times) in [
        (DESCRIBE, "InternalError", 3),
        (CREATE, "InternalError", 3),
        (Action::DeleteNetworkInterface, "InternalError", 3),
        (ASSIGN, "InternalError", 1),
        (Action::AttachNetworkInterface, "InternalError", 1),
        // EC2 says that it did not even try.
        (ASSIGN, "ServiceUnavailable", 3),
        (DESCRIBE, "InvalidSubnetID.NotFound", 1),
        (DESCRIBE, "UnauthorizedOperation", 1),
    ] {
        let at = paced(PaceOptions::default()).at(Priority::WarmFill);

        let (sent, outcome) = send(at, action, |_| Some(failed(action, code))).await;

        assert_eq!((sent, outcome.is_err()), (times, true), "{action} {code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_was_lost_is_sent_again() {
    let at = paced(PaceOptions::default()).at(Priority::WarmFill);

    let (sent, outcome) = send(at, CREATE, |number| {
        (number == 1).then(|| Ec2Error::new(CREATE, &"x", Class::AnswerLost, "connection reset"))
    })
    .await;

    assert_eq!((sent, outcome), (2, Ok(())));
}

#[tokio::test(start_paused = true)]
async fn an_ec2_that_fails_everybody_is_not_asked_three_times_as_often() {
    let plenty = Rate { burst: 1000, per_second: 1000.0 };
    let paced = paced(PaceOptions { reads: plenty, ..PaceOptions::default() });

    let mut sent = 0;
    for _ in 0..100 {
        sent +=
            send(paced.at(Priority::Sweep), DESCRIBE, |_| Some(failed(DESCRIBE, "InternalError"))).await.0;
    }

    assert!((100..135).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_its_place_to_the_next() {
    let paced = paced(one_token(1.0));
    send(paced.at(Priority::WarmFill), ASSIGN, |_| None).await.1.unwrap();
    let gone = tokio::spawn(send(paced.at(Priority::WaitingPod), ASSIGN, |_| None));
    tokio::task::yield_now().await;
    let next = tokio::spawn(send(paced.at(Priority::Sweep), ASSIGN, |_| None));
    tokio::task::yield_now().await;
    let start = now();

    gone.abort();

    assert_eq!(next.await.unwrap(), (1, Ok(())));
    assert!(now() - start < Duration::from_millis(1100));
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_refused_and_not_queued_without_bound() {
    let paced = paced(one_token(0.05));
    send(paced.at(Priority::WarmFill), ASSIGN, |_| None).await.1.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..300 {
        tasks.push(tokio::spawn(send(paced.at(Priority::WarmFill), ASSIGN, |_| None)));
    }
    let mut crowded = 0;
    for task in tasks {
        if let Err(error) = task.await.unwrap().1 {
            crowded += u32::from(error.detail().contains("too many"));
        }
    }

    assert_eq!(crowded, 300 - 256);
}

#[tokio::test(start_paused = true)]
async fn the_observer_hears_of_every_request_with_its_wait_and_outcome() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let paced = Paced::observed((), PaceOptions::default(), {
        let heard = Arc::clone(&heard);
        move |attempt: &Attempt<'_>| {
            heard.lock().unwrap().push((
                attempt.action,
                attempt.number,
                attempt.error.map(|error| error.label().to_owned()),
                attempt.waited > Duration::ZERO,
            ));
        }
    });

    send(paced.at(Priority::WarmFill), ASSIGN, |number| (number == 1).then(|| throttled(ASSIGN)))
        .await
        .1
        .unwrap();

    assert_eq!(
        *heard.lock().unwrap(),
        [(ASSIGN, 1, Some("RequestLimitExceeded".to_owned()), false), (ASSIGN, 2, None, true)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_condition_is_asked_when_a_request_has_its_turn_and_again_before_each_repetition() {
    let paced = paced(one_token(0.1));
    let (asked, start) = (Arc::new(Mutex::new(Vec::new())), now());
    let note = Arc::clone(&asked);
    let at = paced.at(Priority::Shrink).within(Duration::from_secs(60)).only_if(move || {
        let mut asked = note.lock().unwrap();
        asked.push((now() - start).as_secs());
        let is_early = asked.len() < 3;
        async move { is_early }
    });
    assert_eq!(send(paced.at(Priority::WaitingPod), ASSIGN, |_| None).await.0, 1);

    let (sent, outcome) = send(at, ASSIGN, |_| Some(throttled(ASSIGN))).await;

    assert_eq!((sent, outcome.unwrap_err().class()), (2, &Class::Throttled));
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0], 10, "{asked:?}");
    assert!(asked[1] > 10 && asked[2] > asked[1], "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_condition_does_not_hold_is_not_sent() {
    let at = paced(PaceOptions::default()).at(Priority::Shrink).only_if(|| async { false });

    let (sent, outcome) = send(at, ASSIGN, |_| None).await;

    let error = outcome.unwrap_err();
    assert_eq!((sent, error.class(), error.may_have_happened()), (0, &Class::Busy, false));
}
