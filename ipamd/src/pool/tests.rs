//! The pool, stepped by hand.

mod assigning;
mod examples;
mod failing;
mod growing;
mod ipv6;
mod prefixes;
mod property;
mod restoring;
mod returning;
mod shrinking;
mod subnets;
mod waiting;
mod world;
