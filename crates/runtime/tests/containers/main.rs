//! Real containers on this machine: what they can do, what they cannot, how they end, and that they
//! leave nothing. Need root and busybox-static.

mod bed;

mod end;
mod exec;
mod limits;
mod logs;
mod protection;
mod start;
mod survival;
