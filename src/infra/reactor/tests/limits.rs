//! Time and number: what is given up, and who is turned away.

use super::*;

#[test]
fn slow_heads_and_bodies_are_given_up() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |c| {
            c.head_timeout = Duration::from_millis(100);
            c.body_timeout = Duration::from_millis(100);
            c.idle_timeout = Duration::from_millis(300);
        });
        let post = "POST /slow HTTP/1.1\r\nHost: a\r\n";
        for (request, path) in [
            ("GET / HT".to_owned(), "no head"),
            (format!("{post}Content-Length: 5\r\n\r\n"), "/slow"),
            (format!("{post}Content-Length: 5\r\n\r\nab"), "/slow"),
            (format!("{post}Transfer-Encoding: chunked\r\n\r\n5\r\nab"), "/slow"),
        ] {
            let answer = server.ask(request.as_bytes());
            assert!(answer.starts_with("HTTP/1.1 408") && answer.contains(path), "{request:?}: {answer}");
        }
        assert_eq!(server.ask(b""), "", "an idle connection is closed without a word");
        assert_eq!(server.ask(b"\r\n"), "", "and so is one that has sent an empty line");
    });
}

#[test]
fn a_head_or_body_that_trickles_is_given_up_all_the_same() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |c| {
            c.head_timeout = Duration::from_millis(200);
            c.body_timeout = Duration::from_millis(200);
        });
        for start in ["GET / HTTP/1.1\r\nX: ", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"] {
            let mut client = server.connect();
            client.write_all(start.as_bytes()).unwrap();
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(10) && client.write_all(b"y").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
                client.set_nonblocking(true).unwrap();
                let answered = client.peek(&mut [0]).is_ok();
                client.set_nonblocking(false).unwrap();
                if answered {
                    break;
                }
            }
            assert!(read_to_end(&mut client).starts_with("HTTP/1.1 408"), "{start:?}");
        }
    });
}

#[test]
fn a_body_that_never_ends_its_answer_is_not_waited_for() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        for request in ["POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab", "GET / HT", ""] {
            let mut client = server.connect();
            client.write_all(request.as_bytes()).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&mut client), "", "{request:?}");
        }
        eventually("all are closed", || server.sum(ReactorStats::connections_open) == 0);
    });
}

#[test]
fn one_connection_too_many_is_told_so() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |c| c.connections_max = 2);
        let held: Vec<_> = (0..2).map(|_| server.connect()).collect();
        eventually("both are open", || server.sum(ReactorStats::connections_open) == 2);
        for request in ["", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let answer = server.ask(request.as_bytes());
            assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("Connection: close"), "{answer}");
        }
        assert_eq!(server.sum(ReactorStats::connections_turned_away), 2);
        drop(held);
        eventually("both are closed", || server.sum(ReactorStats::connections_open) == 0);
        server.assert_serves();
        assert_eq!(server.sum(ReactorStats::connections_accepted), 5);
    });
}

#[test]
fn a_crowd_that_is_turned_away_leaves_nothing_behind() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |c| c.connections_max = 1);
        let held = server.connect();
        eventually("it is open", || server.sum(ReactorStats::connections_open) == 1);
        // Nobody of them reads or closes: they are dropped by the server, told so or not.
        let mut crowd: Vec<_> = (0..300).map(|_| server.connect()).collect();
        for client in &mut crowd {
            let answer = read_to_end(client);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
        drop(held);
        eventually("it is closed", || server.sum(ReactorStats::connections_open) == 0);
        server.assert_serves();
    });
}

/// Every open stream holds one: what an async function takes by value, or a guard's argument, is there twice.
#[test]
fn a_connection_is_small() {
    fn result_len<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }
    let len = result_len(connection::drive::<crate::app::service::Door>);
    assert!(len <= 2304, "a connection takes {len} bytes: `-Zprint-type-sizes` says where they are");
}
