//! EC2's actions, a file for each kind.

mod addresses;
mod attach;
mod create;
mod describe;
mod filter;
mod ipv6;
mod modify;
