//! A command that a user runs in an instance, or a client that is attached to its first process, over
//! a WebSocket.
//!
//! Three things go on at once until one of them ends: the command's output goes out, what the client
//! says comes in, and input goes on to the command. The input has a buffer of its own between the
//! last two, as large as what a client may send ahead, so that a command that reads nothing never
//! keeps a signal, or the news that the client is gone, from being read. Whatever ends first, the
//! command ends with it, unless its client said that it should go on.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use longshore_api::links::{
    AttachRequest, Channel, EXEC_PROTOCOL, ExecQueryProblem, ExecRequest, FromCommand,
    INPUT_WINDOW, MAX_EXEC_MESSAGE, ToCommand,
};
use longshore_api::{Problem, ProblemCode};
use longshore_link::{
    Refusal, Upgrade, WebSocket, WebSocketError, WebSocketReceiver, WebSocketSender, chain,
};
use longshore_runtime::{ExecControl, ExecEvent, ExecInput, ExecStream, TerminalSize};
use longshore_types::InstanceId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;

use crate::Node;

/// How long a client may take to read the last words and close.
const LINGER: Duration = Duration::from_secs(5);
/// How much of the input goes to the command at once.
const FED_AT_ONCE: usize = 16 << 10;

/// Runs a command. What is wrong with it is said before the connection is turned into a WebSocket.
pub async fn exec(
    State(node): State<Arc<Node>>,
    Path(instance): Path<InstanceId>,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.websocket(EXEC_PROTOCOL, MAX_EXEC_MESSAGE + 1)?;
    let request = ExecRequest::from_query(&query.unwrap_or_default()).map_err(refused)?;
    let stream = node.shims.exec(&instance, of_runtime(request)).await;
    let stream = stream.map_err(|error| Problem::new(ProblemCode::Conflict, chain(&error)))?;
    Ok(upgrade.accept(&node.service, "exec", |socket| talk(socket, stream)))
}

/// Attaches a client.
pub async fn attach(
    State(node): State<Arc<Node>>,
    Path(instance): Path<InstanceId>,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, Refusal> {
    let upgrade = upgrade.websocket(EXEC_PROTOCOL, MAX_EXEC_MESSAGE + 1)?;
    let request = AttachRequest::from_query(&query.unwrap_or_default()).map_err(refused)?;
    let stream = node.shims.attach(&instance, request.terminal.map(size), request.stdin).await;
    let stream = stream.map_err(|error| Problem::new(ProblemCode::Conflict, chain(&error)))?;
    Ok(upgrade.accept(&node.service, "attach", |socket| talk(socket, stream)))
}

fn refused(problem: ExecQueryProblem) -> Problem {
    let value = format_args!("{:?}", problem.value);
    Problem::invalid_value(&problem.field, value, problem.allowed)
}

fn of_runtime(request: ExecRequest) -> longshore_runtime::ExecRequest {
    let ExecRequest { command, user, workdir, env, stdin, terminal } = request;
    let variable = |entry: String| {
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    longshore_runtime::ExecRequest {
        args: command,
        env: env.into_iter().filter_map(variable).collect::<BTreeMap<_, _>>(),
        cwd: workdir,
        user,
        input: stdin,
        terminal: terminal.map(size),
    }
}

fn size(size: longshore_api::links::TerminalSize) -> TerminalSize {
    TerminalSize { columns: size.columns, rows: size.rows }
}

/// Why a conversation ended.
enum End {
    /// The command did, and the client was told.
    Told,
    /// The client went away, with or without a word, or the connection broke.
    Gone,
    /// The client did what it must not.
    Broke(&'static str),
}

async fn talk(socket: WebSocket, mut stream: ExecStream) {
    let (mut sender, mut receiver) = socket.split();
    let (inlet, outlet) = tokio::io::duplex(INPUT_WINDOW);
    let (taken, told) = watch::channel(0);
    let input = stream.take_input();
    let listener = Listener {
        control: stream.control(),
        inlet: input.is_some().then_some(inlet),
        sent: 0,
        taken: taken.subscribe(),
    };
    let end = tokio::select! {
        end = answer(&mut sender, &mut stream, told) => end,
        end = listener.listen(&mut receiver) => end,
        end = feed(outlet, input, &taken) => end,
    };
    // The command is ended, also while the client takes its time.
    drop(stream);
    if let End::Broke(why) = end {
        let failed = FromCommand::Failed { message: why.to_owned() };
        // A client like that may be told or not.
        let _ = tokio::time::timeout(LINGER, sender.send(Channel::control(&failed))).await;
    }
    if matches!(end, End::Told | End::Broke(_)) {
        let _ = sender.close().await;
        // To close a connection on which something is still unread would take the last words along.
        let unread = async { while let Ok(Some(_)) = receiver.receive().await {} };
        let _ = tokio::time::timeout(LINGER, unread).await;
    }
}

/// Sends what the command writes, and how it ended.
async fn answer(
    sender: &mut WebSocketSender,
    stream: &mut ExecStream,
    mut told: watch::Receiver<usize>,
) -> End {
    let mut n_told = 0;
    loop {
        let sent = tokio::select! {
            event = stream.next() => match event {
                Some(Ok(ExecEvent::Stdout(data))) => {
                    sender.send(Channel::Stdout.message(&data)).await
                }
                Some(Ok(ExecEvent::Stderr(data))) => {
                    sender.send(Channel::Stderr.message(&data)).await
                }
                Some(Ok(ExecEvent::Exited { code })) => {
                    return last_words(sender, &FromCommand::Exit { code }).await;
                }
                Some(Err(error)) => {
                    let failed = FromCommand::Failed { message: chain(&error) };
                    return last_words(sender, &failed).await;
                }
                None => return End::Gone,
            },
            Ok(()) = told.changed() => {
                let taken = *told.borrow_and_update();
                let bytes = taken - std::mem::replace(&mut n_told, taken);
                sender.send(Channel::control(&FromCommand::Taken { bytes })).await
            }
            () = tokio::time::sleep(WebSocketSender::HEARTBEAT) => sender.ping().await,
        };
        if sent.is_err() {
            return End::Gone;
        }
    }
}

async fn last_words(sender: &mut WebSocketSender, words: &FromCommand) -> End {
    match sender.send(Channel::control(words)).await {
        Ok(()) => End::Told,
        Err(_) => End::Gone,
    }
}

/// Reads what the client says.
struct Listener {
    control: ExecControl,
    /// Absent when there is no input, or no more.
    inlet: Option<DuplexStream>,
    sent: usize,
    taken: watch::Receiver<usize>,
}

impl Listener {
    async fn listen(mut self, receiver: &mut WebSocketReceiver) -> End {
        loop {
            let message = match receiver.receive().await {
                Ok(Some(message)) => message,
                Err(WebSocketError::NotBinary) => return End::Broke("text is not understood here"),
                Ok(None) | Err(_) => return End::Gone,
            };
            let heard = match Channel::split(&message) {
                Some((Channel::Stdin, bytes)) => self.take(bytes).await,
                Some((Channel::Control, json)) => match self.obey(json).await {
                    Ok(Obeyed::Left) => return End::Gone,
                    Ok(Obeyed::Stays) => Ok(()),
                    Err(why) => Err(why),
                },
                _ => Err("a message on a channel that a client does not have"),
            };
            if let Err(why) = heard {
                return End::Broke(why);
            }
        }
    }

    async fn take(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let inlet = self.inlet.as_mut().ok_or("input that was not asked for, or after its end")?;
        self.sent += bytes.len();
        if self.sent - *self.taken.borrow() > INPUT_WINDOW {
            return Err("more input than may be under way");
        }
        // There is room for it, so this does not wait. The other end is there as long as this one.
        inlet.write_all(bytes).await.map_err(|_| "input that cannot be passed on")
    }

    async fn obey(&mut self, json: &[u8]) -> Result<Obeyed, &'static str> {
        // What a command that has just ended misses of this, it misses.
        match serde_json::from_slice(json) {
            Ok(ToCommand::Resize(wanted)) => {
                let _ = self.control.resize(size(wanted));
            }
            Ok(ToCommand::Signal { name }) => {
                let signal = name.parse().map_err(|_| "a signal that does not exist")?;
                let _ = self.control.signal(signal).await;
            }
            Ok(ToCommand::Eof {}) => self.inlet = None,
            Ok(ToCommand::Detach {}) => {
                // What was typed before is for the program, if it takes it.
                let all = self.taken.wait_for(|taken| *taken >= self.sent);
                let _ = tokio::time::timeout(LINGER, all).await;
                let _ = self.control.detach().await;
                return Ok(Obeyed::Left);
            }
            Err(_) => return Err("a control message that is not understood"),
        }
        Ok(Obeyed::Stays)
    }
}

/// What a client is after what it said.
enum Obeyed {
    Stays,
    Left,
}

/// Passes input on as fast as the command reads it, and says how much that was. What a command does
/// not want to read any more is taken all the same.
async fn feed(
    mut outlet: DuplexStream,
    mut input: Option<ExecInput>,
    taken: &watch::Sender<usize>,
) -> End {
    let mut buffer = vec![0; if input.is_some() { FED_AT_ONCE } else { 0 }];
    while let Ok(length @ 1..) = outlet.read(&mut buffer).await {
        if let Some(open) = &mut input
            && open.write_all(&buffer[..length]).await.is_err()
        {
            input = None;
        }
        taken.send_modify(|taken| *taken += length);
    }
    // The end of the input.
    drop(input);
    pending().await
}
