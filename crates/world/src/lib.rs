//! A world on one machine: places, machines that are network namespaces, and a wire between them
//! that is as slow as the distance.
//!
//! Each [`Machine`] has one link, a TUN device whose other end this process holds. The [`Carrier`]
//! reads what machines send, asks the [`Wire`] what becomes of it, and writes it to the machine that
//! it is for when its time has come. The wire itself is pure: packets, a clock value and a seed in,
//! packets out, so that what it does to them is tested without a kernel. All names and devices go
//! with the process that made them, however it ends: namespaces are held open and not mounted, and a
//! TUN device lives as long as its descriptor.
//!
//! Rejected: the kernel's own delay (`tc netem`), which not every kernel has and which a veth pair for
//! each two machines would need; one bridge, on which pairs cannot be told apart.
//!
//! Must not know: what runs on the machines. Test as root: `cargo nextest run -p longshore-world`.

#![deny(missing_docs)]

mod carrier;
pub mod control;
mod machine;
mod place;
mod tun;
mod wire;

pub use carrier::{Carrier, Tally};
pub use machine::{Machine, MachineError, Subnet, here};
pub use place::{Place, UnknownPlace};
pub use wire::{Outcome, PathView, PlaceIdx, Slowness, Wire};
