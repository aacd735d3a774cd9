//! The end of a reactor: what runs may finish, until it may not.

use super::*;

#[test]
fn a_stop_lets_streams_finish_and_closes_idle_connections() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut idle = server.connect();
        let mut client = server.connect();
        write!(client, "GET /stream/a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_until(&mut client, "event: started");
        eventually("both are open", || server.sum(ReactorStats::connections_open) == 2);
        server.stop.close_listeners();
        eventually("nobody is accepted any more", || TcpStream::connect(server.address).is_err());
        write!(idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(read_until(&mut idle, "\r\n\r\n").contains("200 OK"), "connections go on without a listener");
        server.stop.begin(Duration::from_secs(20));
        assert_eq!(read_to_end(&mut idle), "");
        finish(&server.stream("a"));
        assert!(read_to_end(&mut client).contains("event: end"));
    });
}

#[test]
fn at_the_deadline_connections_are_dropped_whatever_they_do() {
    on_both_drivers(|driver| {
        let mut server = Server::start(driver, |_| {});
        let mut streaming = server.connect();
        write!(streaming, "GET /stream/a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_until(&mut streaming, "event: started");
        let mut sending = server.connect();
        write!(sending, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").unwrap();
        eventually("both are open", || server.sum(ReactorStats::connections_open) == 2);
        let began = Instant::now();
        server.stop.begin(Duration::from_millis(100));
        server.threads.drain(..).for_each(|t| t.join().unwrap());
        assert!(began.elapsed() >= Duration::from_millis(100) && began.elapsed() < Duration::from_secs(5));
        assert_eq!(server.sum(ReactorStats::connections_open), 0);
        assert_eq!(server.stream("a").reader_count(), 0);
        let mut rest = Vec::new();
        assert!(streaming.read_to_end(&mut rest).is_err(), "half a stream must not look like a whole one");
    });
}

#[test]
fn a_reactor_that_nobody_uses_stops_at_once() {
    on_both_drivers(|driver| {
        for _ in 0..20 {
            let mut server = Server::start_many(2, driver.clone(), |_| {});
            let began = Instant::now();
            server.stop.begin(Duration::from_secs(20));
            server.threads.drain(..).for_each(|t| t.join().unwrap());
            assert!(began.elapsed() < Duration::from_secs(5));
        }
    });
}

#[test]
fn a_client_that_comes_while_the_listener_closes_is_served_or_refused_but_never_left_alone() {
    on_both_drivers(|driver| {
        for _ in 0..20 {
            let server = Server::start(driver.clone(), |_| {});
            let stop = server.stop.clone();
            let stopping = std::thread::spawn(move || stop.close_listeners());
            while let Ok(mut client) = TcpStream::connect(server.address) {
                client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                if write!(client, "GET / HTTP/1.1\r\n{CLOSE}\r\n").is_err() {
                    continue;
                }
                let mut all = Vec::new();
                match client.read_to_end(&mut all) {
                    Ok(_) => assert!(all.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&all)),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
                }
            }
            stopping.join().unwrap();
        }
    });
}
