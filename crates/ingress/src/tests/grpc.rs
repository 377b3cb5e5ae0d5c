//! gRPC through the ingress: a server and a client that many programs are built on, unmodified.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use longshore_api::links::Endpoint;
use longshore_types::AppProtocol;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::client::Grpc as Client;
use tonic::server::{Grpc as Server, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::played::*;

/// `message Word { string text = 1; uint32 count = 2; }`
#[derive(Clone, PartialEq, prost::Message)]
struct Word {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    count: u32,
}

type Codec = ProstCodec<Word, Word>;
type Words = std::pin::Pin<Box<dyn Stream<Item = Result<Word, Status>> + Send>>;
type Called<T> = futures_util::future::BoxFuture<'static, Result<Response<T>, Status>>;

fn word(text: impl Into<String>) -> Word {
    Word { text: text.into(), count: 0 }
}

/// What the server tells the test.
#[derive(Debug, PartialEq)]
enum Told {
    /// A call came, with this `grpc-timeout`.
    Called(Option<String>),
    /// The call that hangs was given up.
    GivenUp,
}

#[derive(Clone)]
struct Echo {
    told: mpsc::UnboundedSender<Told>,
    go_on: Arc<Notify>,
}

impl UnaryService<Word> for Echo {
    type Response = Word;
    type Future = Called<Word>;

    fn call(&mut self, request: Request<Word>) -> Called<Word> {
        let timeout = request.metadata().get("grpc-timeout");
        let timeout = timeout.map(|value| value.to_str().unwrap().to_owned());
        self.told.send(Told::Called(timeout)).unwrap();
        let told = self.told.clone();
        Box::pin(async move {
            match request.get_ref().text.as_str() {
                "fail" => {
                    let mut status = Status::failed_precondition("not \u{e4} now, 100%");
                    status.metadata_mut().insert("reason", "because".parse().unwrap());
                    Err(status)
                }
                "hang" => {
                    let _given_up = GivenUp(told);
                    std::future::pending().await
                }
                _ => Ok(Response::new(request.into_inner())),
            }
        })
    }
}

struct GivenUp(mpsc::UnboundedSender<Told>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        let _ = self.0.send(Told::GivenUp);
    }
}

impl ServerStreamingService<Word> for Echo {
    type Response = Word;
    type ResponseStream = Words;
    type Future = Called<Words>;

    /// Words, of which each but the first waits to be let go; `count` of them, then an error.
    fn call(&mut self, request: Request<Word>) -> Called<Words> {
        let (Word { text, count }, go_on) = (request.into_inner(), Arc::clone(&self.go_on));
        let given_up = GivenUp(self.told.clone());
        let words = stream::unfold((0, given_up), move |(sent, given_up)| {
            let (text, go_on) = (text.clone(), Arc::clone(&go_on));
            async move {
                if sent > 0 {
                    go_on.notified().await;
                }
                let word = match sent < count {
                    true => Ok(word(format!("{text} {sent}"))),
                    false => Err(Status::resource_exhausted("no more words")),
                };
                (sent <= count).then_some((word, (sent + 1, given_up)))
            }
        });
        Box::pin(async move { Ok(Response::new(words.boxed())) })
    }
}

impl StreamingService<Word> for Echo {
    type Response = Word;
    type ResponseStream = Words;
    type Future = Called<Words>;

    fn call(&mut self, request: Request<Streaming<Word>>) -> Called<Words> {
        let given_up = GivenUp(self.told.clone());
        let words = request.into_inner().map(move |word| {
            let _ = &given_up;
            word
        });
        Box::pin(async move { Ok(Response::new(words.boxed())) })
    }
}

/// The server, behind an ingress, and a client of it.
struct Call {
    scene: Scene,
    endpoint: Endpoint,
    client: Client<Channel>,
    told: mpsc::UnboundedReceiver<Told>,
    go_on: Arc<Notify>,
    end: Option<DropGuard>,
}

impl Call {
    async fn begin() -> Self {
        let (told, hears) = mpsc::unbounded_channel();
        let go_on = Arc::new(Notify::new());
        let (endpoint, end) = serve(Echo { told, go_on: Arc::clone(&go_on) });
        let scene = Scene::with(short_silence(), &[&endpoint]).await;
        let client = connect(&scene).await;
        Self { scene, endpoint, client, told: hears, go_on, end: Some(end) }
    }

    async fn say(&mut self, request: Request<Word>) -> Result<Response<Word>, Status> {
        self.client.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.Echo/Say");
        in_time("an answer", self.client.unary(request, path, Codec::default())).await
    }

    async fn heard(&mut self) -> Told {
        in_time("word of the server", self.told.recv()).await.unwrap()
    }
}

/// An ordinary exchange may be silent for so long; a call may be for longer.
fn short_silence() -> crate::limits::Limits {
    crate::limits::Limits { silence: Duration::from_millis(200), ..limits() }
}

fn serve(echo: Echo) -> (Endpoint, DropGuard) {
    let say = echo.clone();
    let count = echo.clone();
    let routes = Router::new()
        .route(
            "/test.Echo/Say",
            post(async move |request| Server::new(Codec::default()).unary(say, request).await),
        )
        .route(
            "/test.Echo/Count",
            post(async move |request| {
                Server::new(Codec::default()).server_streaming(count, request).await
            }),
        )
        .route(
            "/test.Echo/Chat",
            post(async move |request| Server::new(Codec::default()).streaming(echo, request).await),
        );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let end = CancellationToken::new();
    let ended = end.clone();
    // A runtime of its own, with which its connections end too.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let server = tonic::transport::Server::builder()
                .add_routes(tonic::service::Routes::from(routes))
                .serve_with_incoming(TcpListenerStream::new(listener));
            ended.run_until_cancelled(server).await
        })
    });
    let endpoint = Endpoint { protocol: AppProtocol::H2c, ..endpoint(address) };
    (endpoint, end.drop_guard())
}

async fn connect(scene: &Scene) -> Client<Channel> {
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{}", scene.ingress.address));
    let endpoint = endpoint.unwrap().origin(format!("http://{HOST}").parse().unwrap());
    Client::new(endpoint.connect().await.unwrap())
}

#[tokio::test]
async fn a_unary_call_and_its_error_go_through() {
    let mut call = Call::begin().await;
    for idx in 0..20 {
        let answer = call.say(Request::new(word(format!("word {idx}")))).await.unwrap();
        assert_eq!(answer.get_ref().text, format!("word {idx}"));
    }
    let status = call.say(Request::new(word("fail"))).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::FailedPrecondition, "not \u{e4} now, 100%")
    );
    assert_eq!(status.metadata().get("reason").unwrap(), "because");
    let large = "x".repeat(3 << 20);
    assert_eq!(call.say(Request::new(word(large.clone()))).await.unwrap().get_ref().text, large);
}

#[tokio::test]
async fn messages_of_a_server_come_as_they_are_sent_and_its_status_last() {
    let mut call = Call::begin().await;
    call.client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Count");
    let asked = Request::new(Word { text: "n".to_owned(), count: 3 });
    let counting = call.client.server_streaming(asked, path, Codec::default());
    let mut words = in_time("the head", counting).await.unwrap().into_inner();
    for idx in 0..3 {
        let word = in_time("a word", words.message()).await.unwrap().unwrap();
        assert_eq!(word.text, format!("n {idx}"));
        // Silence of the server ends no call: its caller has a deadline or wants none.
        tokio::time::sleep(3 * short_silence().silence).await;
        call.go_on.notify_one();
    }
    let status = in_time("the status", words.message()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "no more words"));
}

#[tokio::test]
async fn both_sides_talk_in_turns() {
    let mut call = Call::begin().await;
    call.client.ready().await.unwrap();
    let (say, said) = mpsc::channel(1);
    let path = PathAndQuery::from_static("/test.Echo/Chat");
    let chatting =
        call.client.streaming(Request::new(ReceiverStream::new(said)), path, Codec::default());
    let mut words = in_time("the head", chatting).await.unwrap().into_inner();
    for idx in 0..50_u32 {
        say.send(word(idx.to_string())).await.unwrap();
        let heard = in_time("a word", words.message()).await.unwrap().unwrap();
        assert_eq!(heard.text, idx.to_string());
    }
    drop(say);
    assert_eq!(in_time("the end", words.message()).await.unwrap(), None);
    assert_eq!(call.heard().await, Told::GivenUp);
}

#[tokio::test]
async fn a_deadline_is_told_to_the_server_and_ends_the_call_there() {
    let mut call = Call::begin().await;
    let mut request = Request::new(word("hang"));
    request.set_timeout(Duration::from_millis(700));
    let status = call.say(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    let Told::Called(Some(timeout)) = call.heard().await else { panic!("no deadline was told") };
    assert!(timeout.starts_with("700"), "{timeout}");
    assert_eq!(call.heard().await, Told::GivenUp);
}

#[tokio::test]
async fn a_call_that_is_cancelled_ends_at_the_server() {
    let mut call = Call::begin().await;
    let mut other = connect(&call.scene).await;
    other.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Say");
    let hanging = other.unary::<_, Word, _>(Request::new(word("hang")), path, Codec::default());
    let hanging = async { in_time("for ever", hanging).await.map(|_| ()) };
    tokio::select! {
        _ = hanging => panic!("it answers nothing"),
        told = call.heard() => assert_eq!(told, Told::Called(None)),
    }
    assert_eq!(call.heard().await, Told::GivenUp);

    // In the middle of both streams too, as a client says it by itself.
    let (mut requests, connection) =
        h2::client::handshake(TcpStream::connect(call.scene.ingress.address).await.unwrap())
            .await
            .unwrap();
    tokio::spawn(connection);
    let head = http::Request::post(format!("http://{HOST}/test.Echo/Chat"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut sending) = requests.send_request(head, false).unwrap();
    let message = word("one").encode_to_vec();
    let mut framed = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    framed.extend(message);
    sending.send_data(framed.clone().into(), false).unwrap();
    let mut answer = in_time("the head", answer).await.unwrap().into_body();
    assert_eq!(in_time("a word", answer.data()).await.unwrap().unwrap(), framed);
    sending.send_reset(h2::Reason::CANCEL);
    assert_eq!(call.heard().await, Told::GivenUp);
}

#[tokio::test]
async fn a_server_that_is_gone_is_unavailable_and_an_unknown_host_unimplemented() {
    let mut call = Call::begin().await;
    call.say(Request::new(word("here"))).await.unwrap();
    assert_eq!(call.heard().await, Told::Called(None));
    // In the middle of a call.
    let mut other = connect(&call.scene).await;
    other.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Say");
    let hanging = other.unary::<_, Word, _>(Request::new(word("hang")), path, Codec::default());
    let ending = async {
        assert_eq!(call.told.recv().await, Some(Told::Called(None)));
        drop(call.end.take());
    };
    let (status, ()) = tokio::join!(in_time("the end", hanging), ending);
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
    // And before the next.
    let status = call.say(Request::new(word("gone"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("instance-unreachable"), "{status:?}");

    call.scene.location.give_and_wait(2, &[]).await;
    let status = call.say(Request::new(word("none"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("no-healthy-instance"), "{status:?}");
    let address = call.scene.ingress.address;
    let elsewhere = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    call.client = Client::new(elsewhere.connect().await.unwrap());
    let status = call.say(Request::new(word("where"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
}

#[tokio::test]
async fn many_calls_at_once_share_few_connections_and_are_all_answered() {
    let mut call = Call::begin().await;
    call.client.ready().await.unwrap();
    let calls = (0..300).map(|idx| {
        let mut client = call.client.clone();
        async move {
            client.ready().await.unwrap();
            let path = PathAndQuery::from_static("/test.Echo/Say");
            let asked = Request::new(word(idx.to_string()));
            let answer = client.unary::<_, Word, _>(asked, path, Codec::default()).await.unwrap();
            assert_eq!(answer.get_ref().text, idx.to_string());
        }
    });
    in_time("all answers", futures_util::future::join_all(calls)).await;
    // They end with their endpoint.
    let address = call.endpoint.address;
    assert!(
        (1..=3).contains(&connections_to(address.port())),
        "{}",
        connections_to(address.port())
    );
    call.scene.location.give_and_wait(2, &[]).await;
    in_time("the end of the connections", async {
        while connections_to(address.port()) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Established connections of which the far end has this port, by the kernel's table.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let far_end = format!(":{port:04X}");
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.filter(|f| f.len() > 3 && f[2].ends_with(&far_end) && f[3] == "01").count()
}
