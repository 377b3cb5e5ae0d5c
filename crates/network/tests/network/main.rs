//! The network on a host made of namespaces. Needs root, `nft`, `ip`, `iptables` and `sysctl`.

#![expect(clippy::unwrap_used, reason = "what fails here is the test")]

mod beside_docker;
mod dns;
mod isolation;
mod lab;
mod lifecycle;
mod repair;
mod users;
