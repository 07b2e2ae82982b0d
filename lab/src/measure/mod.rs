//! What a daemon costs and how long its pods wait, measured on a world of its own, beside what
//! the reference does under the same conditions.
//!
//! Each run needs a contained process ([`crate::world::contain`]) and makes a fresh world.

mod burst;
mod calls;
mod families;
pub mod reference;

pub use burst::{Burst, BurstOutcome, burst};
pub use calls::{Calls, Churn, Compared, boot_and_rest, by_rules, growth};
pub use families::{Families, Times, families, median};
