//! What is set on sockets, and the two ways to end one from outside.

// System calls for what neither the standard library nor `socket2` has.
#![allow(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// Connections that the kernel holds for us while we are busy.
const BACKLOG: i32 = 4096;

/// Bytes that wait in a socket's buffer without having been sent. More would only be written too early: a slow
/// reader's memory, and tokens that a cancel can no longer hold back.
const UNSENT_MAX: libc::c_int = 128 * 1024;

/// Write time-outs after which a peer that acknowledges nothing is gone (no power, no cable). It covers a
/// window that stays shut too, so it must be longer than what a write may take.
const SILENT_TIMEOUTS: u32 = 4;

/// A listener that may share its port with others of this process.
///
/// # Errors
///
/// When the address cannot be had.
pub fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Sets what accepted connections are to have: Linux hands it down, which saves system calls for each.
///
/// # Errors
///
/// When the socket has no `TCP_NODELAY`. The others only sharpen what the write time-out does, and a sandboxed
/// kernel may not know them.
pub(super) fn prepare(listener: &TcpListener, write_timeout: Duration) -> io::Result<()> {
    let socket = socket2::SockRef::from(listener);
    let _ = socket.set_tcp_user_timeout(Some(write_timeout.saturating_mul(SILENT_TIMEOUTS)));
    let unsent_max = UNSENT_MAX;
    let (value, len) = ((&raw const unsent_max).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the descriptor is open, and the value has the length that is given and outlives the call.
    let _ = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, value, len) };
    socket.set_nodelay(true)
}

/// Drops a connection with a reset, so that what was written does not look complete. What the kernel is still
/// doing for the socket ends too: a write under way would keep the bytes it writes in use.
pub(super) fn reset(descriptor: RawFd) {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the caller's connection owns the descriptor, and the address outlives the call.
    let done = unsafe { libc::connect(descriptor, &raw const nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) };
    if done != 0 {
        end(descriptor);
    }
}

/// Ends both directions of a socket; on a listening one, it ends the accept under way.
pub(super) fn end(descriptor: RawFd) {
    // SAFETY: the caller owns the descriptor; nothing but its number is passed.
    unsafe { libc::shutdown(descriptor, libc::SHUT_RDWR) };
}

/// Lets this process have as many descriptors as it may, and says how many: each connection is one, and what
/// a shell hands down is often a thousand.
///
/// # Errors
///
/// When the limit cannot be read or set.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is plain data and outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(limit.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}
