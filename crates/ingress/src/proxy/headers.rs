//! What changes in the head of a message on its way through.
//!
//! Hop-by-hop fields are removed as RFC 9110 section 7.6.1 says, those that `Connection` names
//! included. What tells an app about its user is set here and never believed from outside.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, Scheme};
use http::{Request, Uri, Version, request};

use longshore_types::AppProtocol;

use crate::fault::Fault;

/// The id of a request in logs: the client's when it sent one, else a random one.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// In an answer to another location: why none of its instances had the request, as the code of the fault.
/// Between ingresses alone: an instance that says so is not believed, and no user sees it.
pub(crate) const REFUSED: HeaderName = HeaderName::from_static("longshore-refused");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The longest request id that is taken from a client, bytes.
const MAX_REQUEST_ID: usize = 128;

const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Fields by which proxies tell of a user. From a user they are a lie.
const TOLD_BY_PROXIES: [&str; 2] = ["forwarded", "x-real-ip"];

/// Where a request wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// As the client wrote it, for the instance.
    authority: HeaderValue,
    /// The host name in lower case without port and final dot: the key of a route.
    pub host: String,
}

impl Target {
    /// The target of a request by RFC 9112 section 3.2 and RFC 9113 section 8.3.1: the authority
    /// of the URI when there is one, else the only `Host`.
    pub fn of<B>(request: &Request<B>) -> Result<Self, Fault> {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (host, another) = (hosts.next(), hosts.next());
        if another.is_some() {
            return Err(Fault::Invalid("the request has more than one Host"));
        }
        let value = match (request.uri().authority(), host) {
            (Some(authority), None) => HeaderValue::from_str(authority.as_str())
                .map_err(|_| Fault::Invalid("the authority is not valid"))?,
            (Some(authority), Some(host)) => {
                let same = host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
                // In HTTP/1 an absolute form simply wins.
                if request.version() == Version::HTTP_2 && !same {
                    return Err(Fault::Invalid("Host differs from :authority"));
                }
                HeaderValue::from_str(authority.as_str())
                    .map_err(|_| Fault::Invalid("the authority is not valid"))?
            }
            (None, Some(host)) => host.clone(),
            (None, None) => return Err(Fault::Invalid("the request names no host")),
        };
        Self::parse(value).ok_or(Fault::Invalid("the host is not valid"))
    }

    fn parse(value: HeaderValue) -> Option<Self> {
        let authority: Authority = value.to_str().ok()?.parse().ok()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host().to_ascii_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host).to_owned();
        (!host.is_empty()).then_some(Self { authority: value, host })
    }
}

/// From where it is known who the user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// He is at the other end of the connection.
    At {
        /// His address, unless that is a Unix socket.
        address: Option<IpAddr>,
        /// Whether he came by TLS.
        is_secure: bool,
    },
    /// An ingress of another location is, which has said it in the head.
    AsTold,
}

/// Makes the head of a user's request the head of the request to an instance. `upgrade` is the
/// protocol to offer, when the user asked for one.
pub(crate) fn to_instance(
    head: &mut request::Parts,
    target: &Target,
    user: User,
    upgrade: Option<&HeaderValue>,
) {
    let trailers = wants_trailers(&head.headers);
    remove_hop_by_hop(&mut head.headers);
    // The ingress itself tells the client to go on when the instance takes the body.
    if head
        .headers
        .get(header::EXPECT)
        .is_some_and(|e| e.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        head.headers.remove(header::EXPECT);
    }
    join_cookies(&mut head.headers);
    match user {
        User::At { address, is_secure } => {
            tell_of_user(&mut head.headers, target, (address, is_secure));
        }
        User::AsTold => {}
    }
    head.headers.insert(header::HOST, target.authority.clone());
    if let Some(protocol) = upgrade {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, protocol.clone());
    } else if trailers {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    head.version = Version::HTTP_11;
    head.uri = origin_form(&head.uri);
}

fn tell_of_user(
    headers: &mut HeaderMap,
    target: &Target,
    (client, is_secure): (Option<IpAddr>, bool),
) {
    let told = |name: &HeaderName| {
        name.as_str().starts_with("x-forwarded-") || TOLD_BY_PROXIES.contains(&name.as_str())
    };
    let lies: Vec<_> = headers.keys().filter(|name| told(name)).cloned().collect();
    for name in lies {
        headers.remove(name);
    }
    if let Some(address) = client {
        let address = address.to_canonical().to_string();
        let value = HeaderValue::try_from(address).expect("an address is printable ASCII");
        headers.insert(FORWARDED_FOR, value);
    }
    let protocol = if is_secure { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(protocol));
    headers.insert(FORWARDED_HOST, target.authority.clone());
}

/// Gives a request that is ready for an instance the form that its protocol has. May be called again
/// for another instance.
pub(crate) fn form_for<B>(protocol: AppProtocol, request: &mut Request<B>) {
    let http2 = protocol == AppProtocol::H2c;
    match (http2, request.version() == Version::HTTP_2) {
        (true, false) => to_http2(request),
        (false, true) => to_http1(request),
        _ => {}
    }
}

/// The authority goes into the URI, and what speaks of one connection goes (RFC 9113, 8.2.2); an
/// offer to change the protocol goes with it.
fn to_http2<B>(request: &mut Request<B>) {
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(header::CONNECTION);
    headers.remove(header::UPGRADE);
    let host = headers.remove(header::HOST);
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    *request.uri_mut() = Uri::from_parts(parts).expect("a path with an authority that was parsed");
}

fn to_http1<B>(request: &mut Request<B>) {
    *request.version_mut() = Version::HTTP_11;
    let uri = std::mem::take(request.uri_mut());
    let authority = uri.authority().and_then(|one| HeaderValue::from_str(one.as_str()).ok());
    *request.uri_mut() = origin_form(&uri);
    let headers = request.headers_mut();
    if let Some(authority) = authority {
        headers.insert(header::HOST, authority);
    }
    if headers.contains_key(header::TE) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// The id of the request, made when the client sent none or one that does not fit into a log.
pub(crate) fn ensure_request_id(headers: &mut HeaderMap) -> HeaderValue {
    let printable = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let given = headers.get(REQUEST_ID).filter(printable).cloned();
    let id = given.unwrap_or_else(|| {
        let mut buffer = uuid::Uuid::encode_buffer();
        let text = uuid::Uuid::new_v4().simple().encode_lower(&mut buffer);
        HeaderValue::from_str(text).expect("hexadecimal digits are printable ASCII")
    });
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// Makes the head of an instance's answer the head of the answer to the user.
pub(crate) fn to_user(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    headers.remove(REFUSED);
    remove_hop_by_hop(headers);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// True when `Connection` has this token.
pub(crate) fn connection_has(headers: &HeaderMap, wanted: &str) -> bool {
    tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case(wanted))
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"))
}

/// The elements of a field that is a list of tokens.
pub(crate) fn tokens<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// HTTP/2 may cut a cookie into lines; HTTP/1 must have one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() < 2 {
        return;
    }
    let joined = HeaderValue::from_bytes(&lines.join(&b"; "[..]));
    headers.insert(header::COOKIE, joined.expect("valid values joined by valid bytes are valid"));
}

fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().map_or(Cow::Borrowed("/"), |path| match path.as_str() {
        path if path.starts_with('/') || path == "*" => Cow::Borrowed(path),
        // An absolute form may have a query and no path.
        path => Cow::Owned(format!("/{path}")),
    });
    path.parse().expect("a parsed path and query is an origin form")
}
