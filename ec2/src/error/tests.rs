//! Codes of EC2, and what is made of them.

use super::*;

fn answered(action: Action, status: u16, code: &str, message: &str) -> Ec2Error {
    Ec2Error::answered(action, &"eni-1", status, code, message)
}

#[test]
fn codes_are_sorted_by_what_the_caller_can_do() {
    use Action::{
        AssignPrivateIpAddresses as Assign, AttachNetworkInterface as Attach,
        CreateNetworkInterface as Create, DeleteNetworkInterface as Delete,
        DescribeNetworkInterfaces as Describe, DetachNetworkInterface as Detach,
        UnassignPrivateIpAddresses as Unassign,
    };
    for (action, status, code, message, class, retry) in [
        (Describe, 503, "RequestLimitExceeded", "", Class::Throttled, Retry::Soon),
        (Assign, 503, "RequestLimitExceeded", "", Class::Throttled, Retry::Soon),
        (Assign, 400, "Throttling", "", Class::Throttled, Retry::Soon),
        (Assign, 429, "Unheard", "", Class::Throttled, Retry::Soon),
        (Create, 400, "InsufficientFreeAddressesInSubnet", "", Class::SubnetExhausted, Retry::Later),
        (Assign, 400, "InsufficientCidrBlocks", "", Class::NoFreePrefix, Retry::Later),
        (
            Assign,
            400,
            "InvalidParameterValue",
            "There aren't sufficient free Ipv4 addresses or prefixes",
            Class::NoFreePrefix,
            Retry::Later,
        ),
        (Assign, 400, "PrivateIpAddressLimitExceeded", "", Class::AddressLimit, Retry::AfterReading),
        (Attach, 400, "AttachmentLimitExceeded", "", Class::AttachmentLimit, Retry::AfterReading),
        (
            Attach,
            400,
            "InvalidParameterValue",
            "Instance 'i-1' already has an interface attached at device index '1'.",
            Class::SlotInUse,
            Retry::AfterReading,
        ),
        (
            Attach,
            400,
            "InvalidParameterValue",
            "Value (99) for device index is invalid",
            Class::Invalid,
            Retry::No,
        ),
        (Create, 400, "NetworkInterfaceLimitExceeded", "", Class::Quota, Retry::Later),
        (Assign, 400, "InvalidNetworkInterfaceID.NotFound", "", Class::NotFound, Retry::AfterReading),
        (Detach, 400, "InvalidAttachmentID.NotFound", "", Class::AlreadyDone, Retry::AfterReading),
        (
            Unassign,
            400,
            "InvalidParameterValue",
            "Some of [10.0.0.9] addresses are not assigned to interface eni-1",
            Class::NotFound,
            Retry::AfterReading,
        ),
        (
            Delete,
            400,
            "InvalidParameterValue",
            "Network interface 'eni-1' is currently in use.",
            Class::Busy,
            Retry::Soon,
        ),
        (Delete, 400, "InvalidNetworkInterface.InUse", "", Class::Busy, Retry::Soon),
        (Describe, 400, "InvalidParameterValue", "The filter 'x' is invalid", Class::Invalid, Retry::No),
        (Describe, 500, "InternalError", "", Class::Unavailable, Retry::Soon),
        (Assign, 503, "Unavailable", "", Class::Unavailable, Retry::Soon),
        (Assign, 500, "InternalError", "", Class::Unavailable, Retry::AfterReading),
        (Describe, 502, "", "", Class::Unavailable, Retry::Soon),
        (Describe, 404, "", "", Class::Invalid, Retry::No),
    ] {
        let error = answered(action, status, code, message);

        assert_eq!((error.class(), error.retry()), (&class, retry), "{action} {status} {code} {message}");
    }
}

#[test]
fn every_code_about_credentials_says_what_to_check() {
    for code in [
        "AuthFailure",
        "ExpiredToken",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "RequestExpired",
        "SignatureDoesNotMatch",
    ] {
        let error = answered(Action::DescribeSubnets, 401, code, "no");

        assert_eq!(error.class(), &Class::Credentials, "{code}");
        assert!(error.needs_operator(), "{code}");
        assert!(error.to_string().contains("instance profile"), "{error}");
        assert!(error.to_string().contains(code), "{error}");
    }
}

#[test]
fn a_refusal_names_the_permission_to_add() {
    let error = answered(
        Action::AttachNetworkInterface,
        403,
        "UnauthorizedOperation",
        "You are not authorized to perform this operation. Encoded authorization failure message: Zm9v",
    );

    assert_eq!(
        error.to_string(),
        "AttachNetworkInterface eni-1: not permitted; allow ec2:AttachNetworkInterface in the IAM policy of the \
         role the daemon uses (UnauthorizedOperation: You are not authorized to perform this operation.)"
    );
}

#[test]
fn a_refusal_names_the_permission_that_ec2_names() {
    let error = answered(
        Action::CreateNetworkInterface,
        403,
        "UnauthorizedOperation",
        "User: arn:aws:sts::1:assumed-role/node/i-1 is not authorized to perform: ec2:CreateTags on resource: x",
    );

    assert_eq!(error.class(), &Class::Unauthorized { iam_action: "ec2:CreateTags".into() });
    assert_eq!(&*denied_action(Action::CreateTags, "not allowed: ec2:*."), "ec2:CreateTags");
}

#[test]
fn the_ids_that_ec2_misses_are_read_from_its_message() {
    let ids = |message| -> Vec<String> {
        answered(Action::DescribeNetworkInterfaces, 400, "InvalidNetworkInterfaceID.NotFound", message)
            .unknown_enis()
            .map(|id| id.to_string())
            .collect()
    };

    assert_eq!(ids("The networkInterface ID 'eni-0a1' does not exist"), ["eni-0a1"]);
    assert_eq!(ids("The network interface IDs 'eni-0a1, eni-0b2' do not exist"), ["eni-0a1", "eni-0b2"]);
    assert!(ids("no such thing").is_empty());
}

#[test]
fn foreign_text_is_kept_to_one_short_line() {
    let error = answered(Action::CreateTags, 400, "X", &format!("a\nb{}", "c".repeat(10_000)));

    assert!(error.to_string().len() < 600);
    assert!(!error.to_string().contains('\n'));
}

#[test]
fn only_a_change_may_have_happened() {
    let lost = |action| Ec2Error::new(action, &"eni-1", Class::AnswerLost, "").may_have_happened();

    assert!(lost(Action::AssignPrivateIpAddresses));
    assert!(!lost(Action::DescribeSubnets));
    assert!(answered(Action::AttachNetworkInterface, 500, "InternalError", "").may_have_happened());
    assert!(!answered(Action::AttachNetworkInterface, 503, "ServiceUnavailable", "").may_have_happened());
    assert!(!answered(Action::AttachNetworkInterface, 503, "RequestLimitExceeded", "").may_have_happened());
}
