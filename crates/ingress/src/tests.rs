//! The ingress as a whole, between a played location and played instances, over real sockets.

mod elsewhere;
mod grpc;
mod heads;
mod http2;
mod limits;
mod nodes;
mod outliers;
mod played;
mod relays;
mod routing;
mod secure;
mod streams;
