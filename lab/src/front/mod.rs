//! The cloud over HTTP: EC2's Query protocol and the instance metadata service.
