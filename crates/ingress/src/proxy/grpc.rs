//! Calls of gRPC: what the ingress answers them itself, and how they are known.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::Full;

use crate::fault::Fault;

/// True for the head of a call.
pub(super) fn is_call(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let rest = kind.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The answer to a call that gets none from an instance, as every client of gRPC understands it: the
/// status in the head, and no body.
pub(super) fn answer(fault: &Fault) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(status(fault)));
    let message = format!("{}: {}", fault.code(), fault.detail());
    if let Ok(message) = HeaderValue::try_from(escape(&message)) {
        headers.insert("grpc-message", message);
    }
    answer
}

/// As the protocol maps statuses of HTTP.
fn status(fault: &Fault) -> &'static str {
    match fault {
        Fault::Invalid(_) => "13",
        Fault::Tunnel | Fault::UnknownHost(_) => "12",
        Fault::Silent => "4",
        Fault::ClientSilent => "1",
        Fault::NoRoutes
        | Fault::NoInstance(_)
        | Fault::Overloaded
        | Fault::Unreachable
        | Fault::Broken => "14",
    }
}

fn escape(message: &str) -> String {
    let mut escaped = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_type() {
        let is = |kind: &'static str| {
            let kind = HeaderValue::from_static(kind);
            is_call(&HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]))
        };
        assert!(
            ["application/grpc", "application/grpc+proto", "application/grpc;x"].map(is)
                == [true; 3]
        );
        assert!(["application/grpc-web", "application/json", ""].map(is) == [false; 3]);
        assert!(!is_call(&HeaderMap::new()));
    }

    #[test]
    fn a_message_is_printable() {
        assert_eq!(escape("a 100% \u{e4}\n"), "a 100%25 %C3%A4%0A");
    }
}
