//! Descriptors that go with bytes over a socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::protocol::MAX_LINE;

/// The most descriptors that go with one message.
const MOST: usize = 3;

/// Sends bytes, and with the first of them descriptors; says how many bytes were sent.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    passed: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(passed)) {
        return Err(io::Error::other("more descriptors than go with a message"));
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}

/// Receives bytes and the descriptors that came with them; nothing at the end of the connection.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    passed: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            passed.extend(fds);
        }
    }
    Ok(received.bytes)
}

/// Receives a line and the descriptors that came with it; what is no whole line when the connection
/// ends, or is longer than [`MAX_LINE`], is given as it is.
pub(crate) fn receive_line(socket: impl AsFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut passed, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
    while !line.ends_with(b"\n") && line.len() <= MAX_LINE {
        match receive(&socket, &mut buffer, &mut passed)? {
            0 => break,
            length => line.extend_from_slice(&buffer[..length]),
        }
    }
    Ok((line, passed))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_descriptor_comes_with_its_bytes() {
        let (here, there) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(send(&here, b"line\n", &[file.as_fd()]).unwrap(), 5);
        assert_eq!(send(&here, b"more", &[]).unwrap(), 4);
        drop((here, file));
        let (mut buffer, mut passed) = ([0; 64], Vec::new());
        assert_eq!(receive(&there, &mut buffer, &mut passed).unwrap(), 5);
        let mut text = String::new();
        File::from(passed.pop().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert_eq!(receive(&there, &mut buffer, &mut passed).unwrap(), 4);
        assert_eq!(receive(&there, &mut buffer, &mut passed).unwrap(), 0);
        assert!(passed.is_empty());
    }
}
