//! The resolver as an instance sees it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use longshore_network::{Attachment, Network};

use crate::lab::*;

const QUESTION: &[u8] =
    b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x00\x00\x01\x00\x01";

/// The answer of the resolver in the tests: the question, said to be an answer, and a mark.
fn answer(question: &[u8], mark: u8) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer.push(mark);
    answer
}

/// A resolver in a namespace that answers over UDP and TCP, with a mark that tells it from others.
pub fn serve_dns(netns: &Path, address: &str, mark: u8) {
    let (udp, tcp) =
        within(netns, || (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap()));
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, peer)) = udp.recv_from(&mut buffer) {
            udp.send_to(&answer(&buffer[..len], mark), peer).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let question = read_message(&mut stream);
            write_message(&mut stream, &answer(&question, mark));
        }
    });
}

fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut message = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut message).unwrap();
    message
}

fn write_message(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(message).unwrap();
}

pub fn ask_udp(from: &Attachment, question: &[u8]) -> std::io::Result<Vec<u8>> {
    within(&from.netns, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        socket.connect((from.gateway, 53)).unwrap();
        socket.send(question)?;
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer)?;
        Ok(buffer[..len].to_vec())
    })
}

fn ask_tcp(from: &Attachment, questions: &[&[u8]]) -> Vec<Vec<u8>> {
    within(&from.netns, || {
        let mut stream = TcpStream::connect((from.gateway, 53)).unwrap();
        let ask = |question: &&[u8]| {
            write_message(&mut stream, question);
            read_message(&mut stream)
        };
        questions.iter().map(ask).collect()
    })
}

#[test]
fn an_instance_resolves_names_over_udp_and_tcp() {
    on_a_host(async |lab| {
        serve_dns(&lab.internet(), RESOLVER, 1);
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        assert_eq!(attached.resolv_conf(), format!("nameserver {}\n", network.gateway()));
        assert_eq!(ask_udp(&attached, QUESTION).unwrap(), answer(QUESTION, 1));
        assert_eq!(ask_tcp(&attached, &[QUESTION, QUESTION]), vec![answer(QUESTION, 1); 2]);
    });
}

#[test]
fn another_resolver_is_asked_when_one_is_silent() {
    on_a_host(async |lab| {
        let silent = listen_udp(&lab.internet(), "198.51.100.53:5353");
        serve_dns(&lab.internet(), RESOLVER, 2);
        let mut config = lab.config("aaaa01");
        config.upstream_dns = Some(vec![silent.local_addr().unwrap(), RESOLVER.parse().unwrap()]);
        let network = Network::open(config).await.unwrap();
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        assert_eq!(ask_udp(&attached, QUESTION).unwrap(), answer(QUESTION, 2));
    });
}

#[test]
fn a_failure_is_said_when_no_resolver_answers() {
    on_a_host(async |lab| {
        // Nothing listens, which the internet says at once.
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        let answer = ask_udp(&attached, QUESTION).unwrap();
        assert_eq!(answer[3] & 0x0f, 2, "SERVFAIL");
        assert_eq!(ask_tcp(&attached, &[QUESTION])[0], answer);
    });
}

#[test]
fn malformed_and_oversized_questions_are_dropped() {
    on_a_host(async |lab| {
        serve_dns(&lab.internet(), RESOLVER, 1);
        let network = lab.open("aaaa01").await;
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        let is_answer = [&[0xab, 0xcd, 0x81], &QUESTION[3..]].concat();
        let oversized = [QUESTION, &[0; 5000]].concat();
        within(&attached.netns, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
            socket.connect((attached.gateway, 53)).unwrap();
            let mut marked = QUESTION.to_vec();
            marked[0] = 0x77;
            for bytes in [b"".as_slice(), b"x", &QUESTION[..12], &is_answer, &oversized, &marked] {
                socket.send(bytes).unwrap();
            }
            let mut buffer = [0; 4096];
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..len], answer(&marked, 1), "only the good one is answered");
        });
    });
}

#[test]
fn nobody_but_instances_is_answered() {
    on_a_host(async |lab| {
        serve_dns(&lab.internet(), RESOLVER, 1);
        let network = lab.open("aaaa01").await;
        // A host's own process that asks from another of the host's addresses.
        let outsider = UdpSocket::bind(format!("{HOST}:0")).unwrap();
        outsider.connect((network.gateway(), 53)).unwrap();
        outsider.send(QUESTION).unwrap();
        let attached = network.attach(&instance(1), &[]).await.unwrap();
        assert_eq!(ask_udp(&attached, QUESTION).unwrap(), answer(QUESTION, 1));
        outsider.set_nonblocking(true).unwrap();
        let error = outsider.recv(&mut [0; 512]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    });
}
