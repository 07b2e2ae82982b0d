//! The world without AWS: a simulated EC2 and its metadata service, and a VPC made of network
//! namespaces.

pub mod cloud;
pub mod front;
pub mod measure;
pub mod world;
