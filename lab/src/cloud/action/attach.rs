//! `AttachNetworkInterface` and `DetachNetworkInterface`.

use std::sync::Arc;
use std::time::Duration;

use crate::cloud::eni::{Attachment, AttachmentStatus};
use crate::cloud::error::Ec2Error;
use crate::cloud::instance::InstanceState;
use crate::cloud::model::{Cloud, Transition};
use crate::cloud::request::{AttachNetworkInterface, DetachNetworkInterface, Response};

impl Cloud {
    pub(in crate::cloud) fn attach_network_interface(
        &mut self,
        now: Duration,
        request: &AttachNetworkInterface,
    ) -> Result<Response, Ec2Error> {
        let eni = self.eni(&request.eni_id)?;
        let instance = self.instance(&request.instance_id)?;
        if instance.state != InstanceState::Running {
            return Err(Ec2Error::new(
                "IncorrectState",
                format!("Instance '{}' is not 'running' or 'stopped'.", instance.id),
            ));
        }
        if eni.attachment.is_some() {
            return Err(Ec2Error::new(
                "InvalidNetworkInterface.InUse",
                format!("Interface: [{}] in use.", eni.id),
            ));
        }
        if eni.zone != instance.zone {
            return Err(Ec2Error::combination(
                "You may not attach a network interface to an instance if they are not in the same \
                 availability zone",
            ));
        }
        let limits = self.instance_type(&instance.instance_type)?.clone();
        let card = usize::from(request.network_card);
        let Some(&room_on_card) = limits.cards.get(card) else {
            return Err(Ec2Error::invalid_value(format!(
                "Network card index {card} is not valid for instance type {}: it has {} network card(s)",
                limits.name,
                limits.cards.len()
            )));
        };
        let attached: Vec<(u16, u16)> = self
            .enis
            .values()
            .filter_map(|eni| eni.attachment.as_ref())
            .filter(|it| it.instance_id == instance.id)
            .map(|it| (it.network_card, it.device_index))
            .collect();
        if attached.contains(&(request.network_card, request.device_index)) {
            return Err(Ec2Error::invalid_value(format!(
                "Instance '{}' already has an interface attached at device index '{}'.",
                instance.id, request.device_index
            )));
        }
        let on_card = attached.iter().filter(|(it, _)| *it == request.network_card).count();
        if attached.len() >= usize::from(limits.enis) || on_card >= usize::from(room_on_card) {
            return Err(Ec2Error::new(
                "AttachmentLimitExceeded",
                format!("Interface count {} exceeds the limit for {}", attached.len() + 1, limits.name),
            ));
        }
        if eni.slots_used() > usize::from(limits.ipv4_per_eni) {
            return Err(Ec2Error::new(
                "PrivateIpAddressLimitExceeded",
                "Number of private addresses will exceed limit.",
            ));
        }

        let delay = self.knobs.attach_delay;
        let attachment_id = self.dice.id("eni-attach");
        let attachment = Attachment {
            id: attachment_id.clone(),
            instance_id: instance.id.clone(),
            device_index: request.device_index,
            network_card: request.network_card,
            delete_on_termination: false,
            status: if delay.is_zero() { AttachmentStatus::Attached } else { AttachmentStatus::Attaching },
            since: now,
        };
        if let Some(eni) = self.enis.get_mut(&request.eni_id) {
            Arc::make_mut(eni).attachment = Some(attachment);
        }
        if !delay.is_zero() {
            let eni_id = request.eni_id.clone();
            self.at(now + delay, Transition::Attached { eni_id, attachment_id: attachment_id.clone() });
        }
        self.publish(now);
        Ok(Response::Attached { attachment_id, network_card: request.network_card })
    }

    pub(in crate::cloud) fn detach_network_interface(
        &mut self,
        now: Duration,
        request: &DetachNetworkInterface,
    ) -> Result<Response, Ec2Error> {
        let id = &request.attachment_id;
        let found = self
            .enis
            .values()
            .find_map(|eni| eni.attachment.as_ref().filter(|it| it.id == *id).map(|it| (eni.id.clone(), it)));
        let Some((eni_id, attachment)) = found else {
            return Err(Ec2Error::new(
                "InvalidAttachmentID.NotFound",
                format!("The attachment ID '{id}' does not exist"),
            ));
        };
        if attachment.device_index == 0 && attachment.network_card == 0 {
            return Err(Ec2Error::new(
                "OperationNotPermitted",
                "The network interface at device index 0 cannot be detached.",
            ));
        }
        if attachment.status == AttachmentStatus::Detaching && !request.force {
            return Err(Ec2Error::new(
                "IncorrectState",
                format!("The attachment '{id}' is not in state 'attached'."),
            ));
        }
        let delay = if request.force { Duration::ZERO } else { self.knobs.detach_delay };
        if let Some(eni) = self.enis.get_mut(&eni_id) {
            let eni = Arc::make_mut(eni);
            if delay.is_zero() {
                eni.attachment = None;
            } else if let Some(attachment) = &mut eni.attachment {
                attachment.status = AttachmentStatus::Detaching;
            }
        }
        if !delay.is_zero() {
            self.at(now + delay, Transition::Detached { eni_id, attachment_id: id.clone() });
        }
        self.publish(now);
        Ok(Response::Done)
    }
}
