//! Telling the service manager how the process stands: systemd's `Type=notify`.
//!
//! Source: sd_notify(3). The protocol is one datagram of `NAME=VALUE` lines to the socket in `NOTIFY_SOCKET`.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends a state such as `READY=1`. Without a manager that listens nothing happens.
pub fn notify(state: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket.to_string_lossy(), state)
    {
        tracing::warn!(%error, state, "the service manager could not be told");
    }
}

fn send(socket: &str, state: &str) -> std::io::Result<()> {
    // A name that begins with @ is not in the file system.
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_arrives_at_a_path_and_at_an_abstract_name() {
        let unique = uuid::Uuid::new_v4();
        let path = std::env::temp_dir().join(format!("orchestratord-notify-{unique}"));
        let name = format!("orchestratord-notify-{unique}");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, receiver) in [(path.to_str().unwrap().to_owned(), by_path), (format!("@{name}"), by_name)] {
            send(&socket, "READY=1").unwrap();
            let mut bytes = [0; 32];
            let len = receiver.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], b"READY=1");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(send(path.to_str().unwrap(), "READY=1").is_err(), "nobody listens any more");
    }
}
