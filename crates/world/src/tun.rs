//! TUN devices: a link whose other end is a file descriptor.
//!
//! What is read and written is a packet of IP after a header of ten bytes (`virtio_net_hdr`), by which
//! the kernel hands over what it would have cut into many packets as one of up to 64 KiB, with the
//! checksum still to be made. The header goes along to the other machine unread, so one byte of it
//! costs the same as a thousand: that is what makes one core enough.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// What comes before each packet.
pub(crate) const HEADER: usize = 10;
/// The longest that is read: a packet of IP and its header.
pub(crate) const LONGEST: usize = HEADER + 65_535;

/// Where in what is read the destination is, in IPv4.
const DESTINATION: usize = HEADER + 16;

/// Makes a link with this name in the calling thread's network.
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: a request of zeros is valid: no name, no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays the zero that ends the name.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes the request, which outlives the call.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    checked(made)?;
    let offload = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4);
    // SAFETY: the argument is a number.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, offload) })?;
    rustix::io::ioctl_fionbio(&device, true)?;
    Ok(device.into())
}

fn checked(returned: libc::c_int) -> io::Result<()> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where to, for a packet of IPv4.
pub(crate) fn destination(frame: &[u8]) -> Option<Ipv4Addr> {
    let version = frame.get(HEADER)? >> 4;
    let octets: [u8; 4] = frame.get(DESTINATION..DESTINATION + 4)?.try_into().ok()?;
    (version == 4).then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packets_of_ipv4_have_a_destination_here() {
        let mut frame = vec![0; HEADER + 20];
        frame[HEADER] = 0x45;
        frame[DESTINATION..].copy_from_slice(&[198, 18, 0, 7]);
        assert_eq!(destination(&frame), Some(Ipv4Addr::new(198, 18, 0, 7)));
        frame[HEADER] = 0x60;
        assert_eq!(destination(&frame), None, "another version");
        frame[HEADER] = 0x45;
        assert_eq!(destination(&frame[..HEADER + 19]), None, "cut off");
        assert_eq!(destination(&[]), None);
    }
}
