//! Host and pod networking: what is wanted, what the kernel holds, and the steps between.
//!
//! Everything follows one pattern: observe the kernel, plan the differences, apply them. The
//! values in [`wanted`] and the plans made of them are pure; [`kernel`] is the thin part that
//! talks to netlink, nft and /proc. [`pod`] and [`egress`] are what the plugins call, [`host`] and
//! [`evidence`] what the daemon calls.
#![forbid(unsafe_code)]

pub mod egress;
pub mod evidence;
pub mod host;
pub mod kernel;
pub mod monitor;
pub mod pod;
pub mod takeover;
pub mod wanted;
