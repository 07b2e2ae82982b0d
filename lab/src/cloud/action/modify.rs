//! `ModifyNetworkInterfaceAttribute`, `CreateTags` and what has no action of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cloud::error::Ec2Error;
use crate::cloud::model::Cloud;
use crate::cloud::request::{EniChange, ModifyNetworkInterfaceAttribute, Response};

impl Cloud {
    pub(in crate::cloud) fn modify_network_interface(
        &mut self,
        now: Duration,
        request: &ModifyNetworkInterfaceAttribute,
    ) -> Result<Response, Ec2Error> {
        self.eni(&request.eni_id)?;
        match &request.change {
            EniChange::DeleteOnTermination { attachment_id, value } => {
                let attachment = self.attachment_mut(&request.eni_id, attachment_id).ok_or_else(|| {
                    Ec2Error::new(
                        "InvalidAttachmentID.NotFound",
                        format!("The attachment ID '{attachment_id}' does not exist"),
                    )
                })?;
                attachment.delete_on_termination = *value;
            }
            EniChange::Groups(groups) => {
                let groups = self.groups_or_default(groups)?;
                self.change_eni(&request.eni_id, |eni| eni.groups = groups);
            }
            EniChange::SourceDestCheck(value) => {
                self.change_eni(&request.eni_id, |eni| eni.source_dest_check = *value);
            }
            EniChange::Description(text) => {
                self.change_eni(&request.eni_id, |eni| eni.description.clone_from(text));
            }
            EniChange::ConnectionTracking(timeouts) => {
                self.change_eni(&request.eni_id, |eni| eni.connection_tracking = Some(*timeouts));
            }
        }
        self.publish(now);
        Ok(Response::Done)
    }

    fn change_eni(&mut self, id: &str, change: impl FnOnce(&mut crate::cloud::Eni)) {
        if let Some(eni) = self.enis.get_mut(id) {
            change(Arc::make_mut(eni));
        }
    }

    pub(in crate::cloud) fn create_tags(
        &mut self,
        now: Duration,
        resources: &[String],
        tags: &BTreeMap<String, String>,
    ) -> Result<Response, Ec2Error> {
        if let Some(key) = tags.keys().find(|key| key.starts_with("aws:")) {
            return Err(Ec2Error::invalid_value(format!(
                "Tag keys starting with 'aws:' are reserved for internal use: {key}"
            )));
        }
        for id in resources {
            let exists = self.enis.contains_key(id)
                || self.instances.contains_key(id)
                || self.subnets.contains_key(id);
            if !exists {
                return Err(not_found(id));
            }
        }
        for id in resources {
            let of = if let Some(eni) = self.enis.get_mut(id) {
                &mut Arc::make_mut(eni).tags
            } else if let Some(instance) = self.instances.get_mut(id) {
                &mut Arc::make_mut(instance).tags
            } else if let Some(subnet) = self.subnets.get_mut(id) {
                &mut Arc::make_mut(subnet).tags
            } else {
                continue;
            };
            of.extend(tags.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        self.publish(now);
        Ok(Response::Done)
    }

    /// Whether the IMDS of `instance` also answers without a session token.
    pub(in crate::cloud) fn set_imds_v1(&mut self, now: Duration, instance: &str, is_allowed: bool) {
        if let Some(instance) = self.instances.get_mut(instance) {
            Arc::make_mut(instance).imds_v1 = is_allowed;
            self.publish(now);
        }
    }
}

/// EC2 names the kind of the missing thing in the code.
fn not_found(id: &str) -> Ec2Error {
    match id.split('-').next() {
        Some("eni") => Ec2Error::new(
            "InvalidNetworkInterfaceID.NotFound",
            format!("The networkInterface ID '{id}' does not exist"),
        ),
        Some("i") => {
            Ec2Error::new("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
        }
        Some("subnet") => {
            Ec2Error::new("InvalidSubnetID.NotFound", format!("The subnet ID '{id}' does not exist"))
        }
        _ => Ec2Error::new("InvalidID", format!("The ID '{id}' is not valid")),
    }
}
