//! The network on a host made of namespaces. Needs root, `nft`, `ip` and `iptables`.

mod beside_docker;
mod dns;
mod isolation;
mod lab;
mod lifecycle;
mod repair;
