//! The few rtnetlink requests that the network is made of, each safe to repeat.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use futures_util::TryStreamExt;
use longshore_types::IpNet;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, State,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Marks our routes, so that a reader of `ip route` sees whose they are. Unassigned otherwise.
const OUR_PROTOCOL: RouteProtocol = RouteProtocol::Other(76);

/// The kernel takes a millisecond, or a second where it thinks that nobody is in a hurry.
const CARRIER_LIMIT: Duration = Duration::from_secs(5);
const CARRIER_PAUSE: Duration = Duration::from_millis(1);

/// The kernel refused a request about a link, an address or a route.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct NetlinkError {
    doing: String,
    source: rtnetlink::Error,
}

type Result<T> = std::result::Result<T, NetlinkError>;

fn failed(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    let doing = doing.into();
    move |source| NetlinkError { doing, source }
}

fn is(error: &rtnetlink::Error, errnos: &[i32]) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(e) if errnos.contains(&-e.raw_code()))
}

/// A veth pair: the host's end, and the end inside of a namespace.
pub(crate) struct VethPair<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: [u8; 6],
    /// The namespace of the peer; the host's when absent.
    pub(crate) peer_netns: Option<BorrowedFd<'a>>,
    pub(crate) mtu: u32,
}

/// A route of the kernel, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    pub(crate) metric: u32,
    pub(crate) link: Option<u32>,
    pub(crate) is_claim: bool,
}

/// A netlink socket of one network namespace.
pub(crate) struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace, where it stays.
    ///
    /// Must be called within a runtime.
    pub(crate) fn connect(tasks: &TaskTracker) -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tasks.spawn(connection);
        Ok(Self { handle })
    }

    /// The names of all links, with their indices.
    pub(crate) async fn links(&self) -> Result<Vec<(String, u32)>> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("list links"))?;
        Ok(links.iter().filter_map(|link| Some((link_name(link)?, link.header.index))).collect())
    }

    /// The index of a link, when it exists.
    pub(crate) async fn link_index(&self, name: &str) -> Result<Option<u32>> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        match found {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if is(&error, &[libc::ENODEV]) => Ok(None),
            Err(error) => Err(failed(format!("look up link {name}"))(error)),
        }
    }

    /// The index of a link that must exist.
    pub(crate) async fn existing_link_index(&self, name: &str) -> Result<u32> {
        let index = self.link_index(name).await?;
        index.ok_or_else(|| failed(format!("find link {name}"))(rtnetlink::Error::RequestFailed))
    }

    /// The largest packet that a link carries, in bytes.
    pub(crate) async fn mtu(&self, index: u32) -> Result<Option<u32>> {
        let link = self.handle.link().get().match_index(index).execute().try_next().await;
        let link = link.map_err(failed(format!("look up link {index}")))?;
        Ok(link.into_iter().flat_map(|link| link.attributes).find_map(
            |attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(mtu),
                _ => None,
            },
        ))
    }

    /// Makes a veth pair unless its host's end exists, and gives the index of that.
    pub(crate) async fn ensure_veth(&self, pair: &VethPair<'_>) -> Result<u32> {
        if let Some(index) = self.link_index(pair.name).await? {
            return Ok(index);
        }
        let mut peer =
            LinkUnspec::new_with_name(pair.peer_name).address(pair.peer_mac.to_vec()).mtu(pair.mtu);
        if let Some(netns) = pair.peer_netns {
            peer = peer.setns_by_fd(netns.as_raw_fd());
        }
        let link = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .name(pair.name)
            .address(pair.mac.to_vec())
            .mtu(pair.mtu)
            .build();
        let added = self.handle.link().add(link).execute().await;
        added.map_err(failed(format!("add link {}", pair.name)))?;
        self.existing_link_index(pair.name).await
    }

    pub(crate) async fn set_up(&self, index: u32) -> Result<()> {
        let link = LinkUnspec::new_with_index(index).up().build();
        let changed = self.handle.link().change(link).execute().await;
        changed.map_err(failed(format!("set link {index} up")))
    }

    /// Waits until a link carries packets. A veth end does so only some time after the other end
    /// came up, and what is sent before is lost: with TCP, a second of somebody's time.
    pub(crate) async fn wait_for_carrier(&self, index: u32) -> Result<()> {
        let deadline = Instant::now() + CARRIER_LIMIT;
        let doing = || format!("wait for link {index} to carry packets");
        loop {
            let link = self.handle.link().get().match_index(index).execute().try_next().await;
            let attributes = link.map_err(failed(doing()))?.map(|link| link.attributes);
            if attributes.unwrap_or_default().contains(&LinkAttribute::OperState(State::Up)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(failed(doing())(rtnetlink::Error::RequestFailed));
            }
            tokio::time::sleep(CARRIER_PAUSE).await;
        }
    }

    /// Deletes a link if it exists; of a veth pair both ends go.
    pub(crate) async fn ensure_no_link(&self, name: &str) -> Result<()> {
        let Some(index) = self.link_index(name).await? else { return Ok(()) };
        match self.handle.link().del(index).execute().await {
            Err(error) if is(&error, &[libc::ENODEV]) => Ok(()),
            other => other.map_err(failed(format!("delete link {name}"))),
        }
    }

    /// Gives a link the address, as a network of its own.
    pub(crate) async fn ensure_address(&self, index: u32, address: Ipv4Addr) -> Result<()> {
        let request = self.handle.address().add(index, address.into(), 32).replace();
        request.execute().await.map_err(failed(format!("add address {address}")))
    }

    /// Tells the kernel the hardware address of a neighbour for good: nobody asks for it, and
    /// nobody else can answer.
    pub(crate) async fn ensure_neighbour(
        &self,
        index: u32,
        address: Ipv4Addr,
        mac: [u8; 6],
    ) -> Result<()> {
        let request = self.handle.neighbours().add(index, IpAddr::V4(address));
        let request = request.link_layer_address(&mac).replace();
        request.execute().await.map_err(failed(format!("add neighbour {address}")))
    }

    /// Routes `destination` to a link.
    pub(crate) async fn ensure_link_route(
        &self,
        destination: Ipv4Addr,
        index: u32,
        source: Ipv4Addr,
    ) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination, 32)
            .output_interface(index)
            .pref_source(source)
            .scope(RouteScope::Link)
            .protocol(OUR_PROTOCOL)
            .build();
        self.ensure_route(route, format!("add route to {destination}")).await
    }

    /// Routes everything to `gateway`.
    pub(crate) async fn ensure_default_route(&self, gateway: Ipv4Addr) -> Result<()> {
        let route =
            RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).protocol(OUR_PROTOCOL).build();
        self.ensure_route(route, format!("add default route through {gateway}")).await
    }

    /// Claims a subnet: packets to it go nowhere but where longer routes lead, and whoever looks
    /// for a free subnet sees in the route's metric who has it.
    pub(crate) async fn ensure_claim(&self, subnet: IpNet, metric: u32) -> Result<()> {
        self.ensure_route(claim(subnet, metric), format!("add route for {subnet}")).await
    }

    pub(crate) async fn ensure_no_claim(&self, subnet: IpNet, metric: u32) -> Result<()> {
        match self.handle.route().del(claim(subnet, metric)).execute().await {
            Err(error) if is(&error, &[libc::ESRCH]) => Ok(()),
            other => other.map_err(failed(format!("delete route for {subnet}"))),
        }
    }

    async fn ensure_route(&self, route: RouteMessage, doing: String) -> Result<()> {
        self.handle.route().add(route).replace().execute().await.map_err(failed(doing))
    }

    /// All IPv4 routes of all tables, the host's own addresses among them.
    pub(crate) async fn routes(&self) -> Result<Vec<Route>> {
        let all = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build());
        let all: Vec<RouteMessage> =
            all.execute().try_collect().await.map_err(failed("list routes"))?;
        Ok(all.iter().filter_map(route).collect())
    }
}

fn claim(subnet: IpNet, metric: u32) -> RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(subnet.address(), subnet.prefix_len())
        .kind(RouteType::Unreachable)
        .priority(metric)
        .protocol(OUR_PROTOCOL)
        .build()
}

fn link_name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn route(message: &RouteMessage) -> Option<Route> {
    let mut address = Ipv4Addr::UNSPECIFIED;
    let mut metric = 0;
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(inet)) => address = *inet,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    Some(Route {
        destination: IpNet::new(address, message.header.destination_prefix_length)?,
        metric,
        link,
        is_claim: message.header.kind == RouteType::Unreachable
            && message.header.protocol == OUR_PROTOCOL,
    })
}
