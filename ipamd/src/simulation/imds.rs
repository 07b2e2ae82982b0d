//! Instance metadata for one process: the lab's model, asked without any socket.

use std::sync::Arc;

use ec2::{ImdsError, Metadata, Metadatum};

use super::life::Life;
use super::world::World;

/// Instance metadata, as one process reaches it.
pub(super) struct SimImds {
    pub(super) world: Arc<World>,
    pub(super) instance: String,
    pub(super) life: Arc<Life>,
}

impl Metadata for SimImds {
    fn get<'a>(&'a self, path: &'a str) -> Metadatum<'a> {
        Box::pin(async move {
            if self.life.is_over() {
                return std::future::pending().await;
            }
            if self.world.is_imds_down() {
                let detail = "no answer".to_owned();
                return Err(ImdsError::Unreachable { path: path.to_owned(), detail });
            }
            match self.world.cloud.with(|cloud, now| cloud.imds_get(now, &self.instance, path)) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.status == 404 => Ok(None),
                Err(error) => Err(ImdsError::Status { path: path.to_owned(), status: error.status }),
            }
        })
    }
}
