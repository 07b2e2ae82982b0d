//! Every error of a refused ADD, held against the page that explains it to operators.

use std::time::Duration;

use super::*;
use crate::add::refused;
use crate::daemon::{AssignError, Refusal};
use crate::rpc::CallError;

const PAGE: &str = include_str!("../../../docs/troubleshooting.md");

/// What every text begins with that tells of no address.
const NO_ADDRESS: &str = "add cmd: failed to assign an IP address to container";

/// Every reason that the wire knows.
fn reasons() -> Vec<RefusalReason> {
    (0..).map_while(|number| RefusalReason::try_from(number).ok()).collect()
}

/// The code for each reason. A new one does not compile until it is here.
fn code(reason: RefusalReason) -> u32 {
    match reason {
        RefusalReason::Unspecified
        | RefusalReason::NodeFull
        | RefusalReason::CoolingDown
        | RefusalReason::PoolFilling
        | RefusalReason::SubnetExhausted
        | RefusalReason::QuotaExceeded
        | RefusalReason::Throttled
        | RefusalReason::Ec2Unavailable
        | RefusalReason::HostSetupFailed
        | RefusalReason::StateNotDurable
        | RefusalReason::NotReady
        | RefusalReason::Quarantined => 11,
        RefusalReason::PermissionDenied => 100,
        RefusalReason::ProvisioningOff => 101,
        RefusalReason::BadRequest => 102,
        RefusalReason::Ec2Refuses => 104,
    }
}

/// What the page says under a reason's name: the code, and the text as it is printed.
fn explained(reason: RefusalReason) -> (u32, &'static str, &'static str) {
    let name = reason.as_str_name();
    let section =
        PAGE.split("\n### ").find_map(|section| section.strip_prefix(name)?.strip_prefix("\n\nCode "));
    let section =
        section.unwrap_or_else(|| panic!("docs/troubleshooting.md has no section {name} with a code"));
    let (code, rest) = section.split_once(".\n\n```\n").unwrap();
    let (text, advice) = rest.split_once("\n```\n").unwrap();
    (code.parse().unwrap(), text, advice)
}

/// The daemon's words in a printed text, and the pause that it proposes.
fn taken_apart(text: &str, reason: RefusalReason) -> Refusal {
    let words = text.strip_prefix(&format!("{NO_ADDRESS}: {}: ", reason.as_str_name())).unwrap();
    let (words, pause) = match words.rsplit_once("; asking again makes sense in ") {
        Some((words, pause)) => (words, Some(pause.strip_suffix(" s").unwrap().parse().unwrap())),
        None => (words, None),
    };
    Refusal { reason, message: words.to_owned(), retry_after: pause.map(Duration::from_secs_f32) }
}

#[test]
fn every_reason_becomes_the_error_that_the_page_shows() {
    assert!(reasons().len() > 13);
    for reason in reasons() {
        let (page_code, text, advice) = explained(reason);

        let error = refused(AssignError::Refused(Some(taken_apart(text, reason))));

        let expected =
            CniError { code: Code(code(reason)), message: text.to_owned(), details: String::new() };
        assert_eq!(error, expected, "{reason:?}");
        assert_eq!(page_code, error.code.0, "{reason:?}");
        assert!(advice.trim().len() > 40, "the page does not say what to do about {reason:?}");
        let printed = error.render();
        let shown = text.replace('"', "\\\"");
        assert_eq!(printed, format!("{{\n    \"code\": {page_code},\n    \"msg\": \"{shown}\"\n}}"));
    }
}

#[test]
fn the_page_explains_no_reason_that_nobody_gives() {
    let headings = PAGE.lines().filter_map(|line| line.strip_prefix("### "));
    let names: Vec<_> = reasons().iter().map(RefusalReason::as_str_name).collect();

    assert!(headings.clone().count() > 13);
    for heading in headings {
        assert!(names.contains(&heading), "{heading}");
    }
}

#[test]
fn an_add_that_fails_without_a_reason_of_the_daemon_still_says_what_happened() {
    let status = |code| CallError::Answered(tonic::Status::new(code, "odd"));
    let call = "add cmd: Error received from AddNetwork gRPC call: rpc error: code = ";
    let cases = [
        (
            AssignError::Call(CallError::Unreachable("gone".to_owned())),
            11,
            format!("{call}Unavailable desc = gone"),
        ),
        (
            AssignError::Call(CallError::TimedOut(Duration::from_secs(35))),
            11,
            format!("{call}DeadlineExceeded desc = context deadline exceeded: no answer within 35s"),
        ),
        (AssignError::Call(status(tonic::Code::Internal)), 999, format!("{call}Internal desc = odd")),
        (AssignError::Refused(None), 11, NO_ADDRESS.to_owned()),
        (
            AssignError::Absurd("it holds no address".to_owned()),
            103,
            format!("{NO_ADDRESS}: the node daemon's answer is unusable: it holds no address"),
        ),
        (
            AssignError::Branch(7),
            102,
            format!(
                "{NO_ADDRESS}: the node daemon gave the pod a branch ENI (VLAN 7): \
                 security groups for pods are not supported by this release"
            ),
        ),
    ];
    for (failure, code, message) in cases {
        assert_eq!(refused(failure), CniError::new(Code(code), message));
    }
}

#[test]
fn an_error_is_printed_over_several_lines_without_a_newline_at_the_end() {
    let error = CniError::new(Code::INVALID_ENVIRONMENT, "invalid characters in containerID");

    let expected = include_str!("../../golden/error-container-id.json").trim_end();
    assert_eq!(error.with_details("a b").render(), expected);
}
