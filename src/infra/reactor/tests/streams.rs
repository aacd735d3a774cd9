//! Streams: every byte once and in order, to readers that read, that do not, and that go.

use super::*;

fn expected_body(tokens: u32) -> Vec<u8> {
    let mut expected = frame(0, "started");
    (1..=tokens).for_each(|id| expected.extend(frame(id, "token")));
    expected.extend(frame(tokens + 1, "end"));
    expected.extend_from_slice(sse::LAST_CHUNK);
    expected
}

#[test]
fn hundreds_of_streams_get_every_byte_once_and_in_order() {
    on_both_drivers(|driver| {
        let server = Server::start_many(2, driver, |_| {});
        let (count, tokens) = (500, 40);
        let mut clients: Vec<_> = (0..count)
            .map(|n| {
                let mut client = server.connect();
                write!(client, "GET /stream/{n} HTTP/1.1\r\n{CLOSE}\r\n").unwrap();
                client
            })
            .collect();
        let streams: Vec<_> = (0..count).map(|n| server.stream(&n.to_string())).collect();
        eventually("all streams are counted", || server.sum(ReactorStats::streams_open) == count);
        for id in 1..=tokens {
            for (_, _, writer) in server.echo.streams.lock().unwrap().iter_mut() {
                writer.append(&frame(id, "token")).unwrap();
            }
            server.hub.ring_all();
        }
        streams.iter().for_each(|s| finish(s));
        for client in &mut clients {
            let answer = read_to_end(client);
            assert!(answer.split_once("\r\n\r\n").unwrap().1.as_bytes() == expected_body(tokens), "{answer}");
        }
        eventually("every reader is gone", || server.sum(ReactorStats::streams_open) == 0);
        assert!(streams.iter().all(|s| s.reader_count() == 0));
    });
}

#[test]
fn a_stream_keeps_its_connection_and_what_was_pipelined_behind_it() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut client = server.connect();
        write!(client, "GET /stream/a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_until(&mut client, "event: started");
        // More than is read at once beside a stream, and the last of it after the end.
        let body = "y".repeat(2000);
        let next = format!("POST / HTTP/1.1\r\n{CLOSE}Content-Length: 2000\r\n\r\n{body}");
        client.write_all(&next.as_bytes()[..1500]).unwrap();
        let stream = server.stream("a");
        server.append("a", &frame(1, "token"));
        server.hub.ring_all();
        read_until(&mut client, "event: token");
        finish(&stream);
        client.write_all(&next.as_bytes()[1500..]).unwrap();
        let rest = read_to_end(&mut client);
        assert!(rest.contains("event: end") && rest.contains("HTTP/1.1 200 OK") && rest.ends_with(&body), "{rest}");
    });
}

#[test]
fn an_http_1_0_reader_gets_events_without_chunks() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |c| c.heartbeat = Duration::from_millis(30));
        let mut client = server.connect();
        write!(client, "GET /stream/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let head_and_more = read_until(&mut client, "\n: keep-alive\n");
        finish(&server.stream("a"));
        let answer = head_and_more + &read_to_end(&mut client);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("Connection: close") && !head.contains("chunked"), "{head}");
        let body = body.replace(": keep-alive\n", "");
        assert_eq!(body, "id: 0\nevent: started\ndata: {}\n\nid: 1\nevent: end\ndata: {}\n\n");
    });
}

#[test]
fn a_reader_that_goes_is_noticed_at_once() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let fastest = (0..5).map(|n| {
            let mut client = server.connect();
            write!(client, "GET /stream/{n} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            read_until(&mut client, "event: started");
            let stream = server.stream(&n.to_string());
            assert_eq!(stream.reader_count(), 1);
            let began = Instant::now();
            drop(client);
            eventually("the reader is gone", || stream.reader_count() == 0);
            began.elapsed()
        });
        // The fastest of five: a busy machine may be slow, but not always.
        let fastest = fastest.min().unwrap();
        assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    });
}

#[test]
fn a_silent_stream_shows_life_and_a_busy_one_need_not() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |c| c.heartbeat = Duration::from_millis(100));
        let mut client = server.connect();
        let began = Instant::now();
        write!(client, "GET /stream/a HTTP/1.1\r\n{CLOSE}\r\n").unwrap();
        let shown = read_until(&mut client, ": keep-alive\n\r\n");
        assert!(began.elapsed() >= Duration::from_millis(100) && shown.ends_with("\r\nd\r\n: keep-alive\n\r\n"));
        // A post without bytes does not put the next one off.
        let stream = server.stream("a");
        let posting = Instant::now();
        client.set_nonblocking(true).unwrap();
        let mut piece = [0; 100];
        while client.read(&mut piece).is_err() {
            assert!(posting.elapsed() < Duration::from_secs(10), "no sign of life");
            stream.post_readers();
            server.hub.ring_all();
            std::thread::sleep(Duration::from_millis(1));
        }
        finish(&stream);
    });
}

#[test]
fn a_slow_reader_gets_everything_though_it_takes_longer_than_one_write_may() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |c| c.write_timeout = Duration::from_millis(500));
        let mut client = server.connect();
        socket2::SockRef::from(&client).set_recv_buffer_size(64 * 1024).unwrap();
        write!(client, "GET /stream/a HTTP/1.1\r\n{CLOSE}\r\n").unwrap();
        let stream = server.stream("a");
        let mut expected = frame(0, "started");
        let big = "x".repeat(1_000_000);
        for id in 1..12 {
            let frame = frame(id, &big);
            server.append("a", &frame);
            expected.extend(frame);
        }
        finish(&stream);
        expected.extend(frame(12, "end"));
        expected.extend_from_slice(sse::LAST_CHUNK);
        let (mut all, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
        let began = Instant::now();
        while let len @ 1.. = client.read(&mut piece).unwrap() {
            all.extend_from_slice(&piece[..len]);
            if began.elapsed() < Duration::from_millis(1500) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        assert!(began.elapsed() > Duration::from_millis(500), "the reader was not slow: {:?}", began.elapsed());
        assert!(all.ends_with(&expected), "{} bytes of {}", all.len(), expected.len());
    });
}

/// Fills the buffers between server and client, which does not read.
fn clog(server: &Server, client: &mut TcpStream) -> Arc<TaskStream> {
    write!(client, "GET /stream/a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let stream = server.stream("a");
    let big = "x".repeat(100_000);
    for id in 1..200 {
        server.append("a", &frame(id, &big));
    }
    server.hub.ring_all();
    let (_, nobody) = WakeHub::for_tests();
    eventually("a write is under way", || !stream.is_quiet(nobody));
    stream
}

#[test]
fn a_reader_that_does_not_read_is_dropped_by_the_time_out_or_by_an_abort() {
    on_both_drivers(|driver| {
        for abort in [false, true] {
            let server = Server::start(driver.clone(), |c| {
                c.write_timeout = Duration::from_millis(if abort { 60_000 } else { 200 });
            });
            let mut client = server.connect();
            let stream = clog(&server, &mut client);
            if abort {
                // Long enough for the write to get stuck; if it is not yet, the abort must work all the same.
                std::thread::sleep(Duration::from_millis(50));
                assert_eq!(stream.reader_count(), 1);
                stream.mute();
                stream.abort_readers();
            }
            eventually("the reader is gone", || stream.reader_count() == 0);
            let (_, nobody) = WakeHub::for_tests();
            eventually("no write is in flight", || stream.is_quiet(nobody));
            let mut all = Vec::new();
            let ended = client.read_to_end(&mut all);
            assert_eq!(ended.map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset), "it must not look complete");
            server.assert_serves();
        }
    });
}

#[test]
fn a_muted_stream_ends_without_what_was_not_sent() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut client = server.connect();
        write!(client, "GET /stream/a HTTP/1.1\r\n{CLOSE}\r\n").unwrap();
        read_until(&mut client, "event: started");
        let stream = server.stream("a");
        stream.mute();
        server.append("a", &frame(1, "token"));
        server.hub.ring_all();
        finish(&stream);
        let rest = read_to_end(&mut client);
        assert!(!rest.contains("token") && rest.contains("event: end") && rest.ends_with("0\r\n\r\n"), "{rest}");
    });
}
