//! What EC2 refuses, and whose fault that is.

use ec2::Ec2Error;

use super::*;

fn class_of_create(code: &str, message: &str) -> FailureClass {
    let subnet: SubnetId = "subnet-1".parse().unwrap();
    let error = Ec2Error::answered(Action::CreateNetworkInterface, &"in subnet-1", 400, code, message);
    let error = StepError::in_subnet(&subnet, error);
    assert!(error.message.contains(code), "{error}");
    error.class
}

#[test]
fn a_subnet_is_at_fault_only_where_ec2_names_it() {
    for (code, message) in [
        ("InvalidSubnetID.NotFound", "The subnet ID 'subnet-1' does not exist"),
        ("InsufficientFreeAddressesInSubnet", "The specified subnet does not have enough free addresses"),
        ("InvalidParameterValue", "Network interfaces are not supported in subnet subnet-1"),
    ] {
        assert_eq!(class_of_create(code, message), FailureClass::SubnetExhausted, "{code}");
    }
    for (code, message) in [
        ("InvalidSecurityGroupID.NotFound", "The security group 'sg-1' does not exist"),
        ("InvalidGroup.NotFound", "The security group 'sg-1' does not exist in VPC 'vpc-1'"),
        ("InvalidParameter", "Security group sg-1 and subnet subnet-1 belong to different networks."),
        ("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use"),
    ] {
        assert_eq!(class_of_create(code, message), FailureClass::Refused, "{code}: {message}");
    }
    let full = class_of_create("InsufficientCidrBlocks", "There are not sufficient free Ipv4 blocks");
    assert_eq!(full, FailureClass::NoFreePrefix);
}

#[tokio::test]
async fn an_instance_that_may_have_no_further_eni_is_no_unavailable_ec2() {
    let world = World::new();
    world.ec2.fail(Action::AttachNetworkInterface, Fault::Refuse(Class::AttachmentLimit));

    let failed = failure(run(&world.executor(), allocate()).await);

    assert_eq!(failed.class, FailureClass::EniLimit, "{}", failed.message);
}
