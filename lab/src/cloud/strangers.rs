//! What others in the account do: take addresses of a subnet, and change tags.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::error::Ec2Error;
use super::model::Cloud;

/// The addresses that others have taken, by subnet.
pub(super) type Strangers = BTreeMap<String, Vec<Ipv4Addr>>;

impl Cloud {
    /// Others take addresses of a subnet until only `leave` are free, or fewer if they were so
    /// before.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`.
    pub fn occupy_subnet(&mut self, now: Duration, subnet: &str, leave: u32) -> Result<(), Ec2Error> {
        self.advance(now);
        self.subnet(subnet)?;
        let (placement, dice) = (self.knobs.placement, &mut self.dice);
        let Some(space) = self.space.get_mut(subnet) else { return Ok(()) };
        let taken = self.strangers.entry(subnet.to_owned()).or_default();
        while space.available() > leave
            && let Some(address) = space.take_any(placement, dice)
        {
            taken.push(address);
        }
        self.publish(now);
        Ok(())
    }

    /// Others take one address of each /28 of a subnet that nobody uses, so that it has free
    /// addresses and no free prefix.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`.
    pub fn fragment_subnet(&mut self, now: Duration, subnet: &str) -> Result<(), Ec2Error> {
        self.advance(now);
        self.subnet(subnet)?;
        let (placement, dice) = (self.knobs.placement, &mut self.dice);
        let Some(space) = self.space.get_mut(subnet) else { return Ok(()) };
        let taken = self.strangers.entry(subnet.to_owned()).or_default();
        let mut blocks = Vec::new();
        while let Some(block) = space.take_block(placement, dice) {
            blocks.push(block);
        }
        for block in blocks {
            space.release_block(block);
            // It was free a moment ago.
            if space.take(block.network()).is_ok() {
                taken.push(block.network());
            }
        }
        self.publish(now);
        Ok(())
    }

    /// Others give back what they have taken of a subnet.
    ///
    /// # Errors
    /// `InvalidSubnetID.NotFound`.
    pub fn vacate_subnet(&mut self, now: Duration, subnet: &str) -> Result<(), Ec2Error> {
        self.advance(now);
        self.subnet(subnet)?;
        let taken = self.strangers.remove(subnet).unwrap_or_default();
        if let Some(space) = self.space.get_mut(subnet) {
            taken.into_iter().for_each(|address| space.release(address));
        }
        self.publish(now);
        Ok(())
    }

    /// Sets a tag of an ENI, instance or subnet; `None` takes it away.
    ///
    /// # Errors
    /// EC2's own for an id that does not exist.
    pub fn set_tag(
        &mut self,
        now: Duration,
        resource: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), Ec2Error> {
        self.advance(now);
        let tags = if resource.starts_with("eni-") {
            let eni = self.eni(resource)?;
            &mut Arc::make_mut(self.enis.entry(eni.id.clone()).or_insert(eni)).tags
        } else if resource.starts_with("subnet-") {
            let subnet = self.subnet(resource)?;
            &mut Arc::make_mut(self.subnets.entry(subnet.id.clone()).or_insert(subnet)).tags
        } else {
            let instance = self.instance(resource)?;
            &mut Arc::make_mut(self.instances.entry(instance.id.clone()).or_insert(instance)).tags
        };
        match value {
            Some(value) => tags.insert(key.to_owned(), value.to_owned()),
            None => tags.remove(key),
        };
        self.publish(now);
        Ok(())
    }
}
