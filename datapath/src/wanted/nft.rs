//! The node's packet filter as a value: which packets get the mark, which the node's address.
