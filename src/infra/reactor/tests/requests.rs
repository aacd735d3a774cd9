//! Requests and answers: in pieces, in rows, refused, and wrong.

use super::*;

#[test]
fn pipelined_requests_are_answered_in_order_however_they_arrive() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut all = Vec::new();
        for n in 0..50 {
            let body = format!("{n}-yad");
            all.extend(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()).bytes());
        }
        all.extend(format!("GET / HTTP/1.1\r\n{CLOSE}\r\n").bytes());
        for step in [all.len(), 7, 1] {
            let mut stream = server.connect();
            for piece in all.chunks(step) {
                stream.write_all(piece).unwrap();
            }
            let answers = read_to_end(&mut stream);
            assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 51);
            let bodies: Vec<_> = answers.split("\r\n\r\n").skip(1).map(|a| a.split("HTTP").next().unwrap()).collect();
            for (n, body) in bodies[..50].iter().enumerate() {
                let expected: String = format!("{n}-yad").chars().rev().collect();
                assert_eq!(*body, expected);
            }
        }
    });
}

#[test]
fn a_chunked_body_is_the_same_wherever_it_is_split() {
    let request = format!(
        "POST / HTTP/1.1\r\n{CLOSE}Transfer-Encoding: chunked\r\n\r\n3;a=b\r\ncba\r\n02\r\nfe\r\n0\r\nT: x\r\n\r\n"
    );
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        for split in 0..request.len() {
            let (first, second) = request.split_at(split);
            let mut stream = server.connect();
            stream.write_all(first.as_bytes()).unwrap();
            // Most splits arrive as two reads; which ones is not what this test is about.
            std::thread::sleep(Duration::from_micros(300));
            stream.write_all(second.as_bytes()).unwrap();
            let answer = read_to_end(&mut stream);
            assert!(answer.ends_with("\r\n\r\nefabc"), "split at {split}: {answer}");
        }
    });
}

#[test]
fn a_body_in_a_hundred_thousand_chunks_is_taken() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let chunks = |n: usize| "1\r\nx\r\n".repeat(n) + "0\r\n\r\n";
        let head = format!("POST / HTTP/1.1\r\n{CLOSE}Transfer-Encoding: chunked\r\n\r\n");
        let answer = server.ask((head.clone() + &chunks(100_000)).as_bytes());
        assert!(answer.contains("Content-Length: 100000\r\n"), "{}", &answer[..200.min(answer.len())]);
        assert!(server.ask((head + &chunks(100_001)).as_bytes()).starts_with("HTTP/1.1 413"));
    });
}

#[test]
fn expectations_are_met_and_a_refused_one_is_told_at_once() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let expects = |path: &str, len: u32| {
            format!("POST {path} HTTP/1.1\r\n{CLOSE}Content-Length: {len}\r\nExpect: 100-continue\r\n\r\n")
        };
        let mut stream = server.connect();
        stream.write_all(expects("/", 3).as_bytes()).unwrap();
        assert_eq!(read_until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"cba").unwrap();
        assert!(read_to_end(&mut stream).ends_with("abc"));
        let at_once = server.ask((expects("/", 3) + "cba").as_bytes());
        assert!(at_once.starts_with("HTTP/1.1 200"), "who did not wait is not told to go on: {at_once}");
        for (path, len, status) in [("/refused", 3, "401"), ("/", 100_001, "413")] {
            let answer = server.ask(expects(path, len).as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
            assert!(!answer.contains("100 Continue") && answer.contains("Connection: close"), "{answer}");
        }
    });
}

#[test]
fn a_refusal_does_not_wait_for_the_body_nor_cost_the_connection() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut stream = server.connect();
        stream.write_all(b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc").unwrap();
        assert!(read_until(&mut stream, "refused").starts_with("HTTP/1.1 401"));
        write!(stream, "defGET / HTTP/1.1\r\n{CLOSE}\r\n").unwrap();
        let answer = read_to_end(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
}

#[test]
fn a_body_over_the_limit_is_told_so_however_long_it_is() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        for len in [100_001, 500_000] {
            let mut large = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n").into_bytes();
            large.extend(std::iter::repeat_n(b'x', len));
            assert!(server.ask(&large).starts_with("HTTP/1.1 413"));
        }
        for len in [99_999, 100_000] {
            let request = format!("POST / HTTP/1.1\r\n{CLOSE}Content-Length: {len}\r\n\r\n{}", "x".repeat(len));
            assert!(server.ask(request.as_bytes()).starts_with("HTTP/1.1 200"));
        }
    });
}

#[test]
fn what_is_malformed_closes_the_connection_and_nothing_else() {
    let post = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        for (request, status) in [
            (post("Content-Length: 1\r\nContent-Length: 1\r\n") + "x", 400),
            (post("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400),
            (post("Transfer-Encoding: xchunked\r\n"), 501),
            (post("Transfer-Encoding: chunked\r\n") + "zz\r\n", 400),
            (post("Transfer-Encoding: chunked\r\n") + "1\nx\n0\n\n", 400),
            (post("Transfer-Encoding: chunked\r\n") + "fffffffffffffffff\r\n", 413),
            (post("Content-Length : 1\r\n"), 400),
            (post("X: a\r\n b\r\n"), 400),
            (post("X: a\rb\r\n"), 400),
            (post("Host: b\r\n"), 400),
            ("GET / HTTP/1.1\nHost: a\n\n".into(), 400),
            ("GET / HTTP/1.1\r\n\r\n".into(), 400),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
            ("\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03 a TLS client\n".into(), 400),
            (post(&format!("X: {}\r\n", "y".repeat(5000))), 431),
            (post(&"X: y\r\n".repeat(32)), 431),
            (format!("GET /{} HTTP/1.1\r\n", "y".repeat(5000)), 414),
        ] {
            let answer = server.ask(format!("{request}GET /second HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
            assert!(answer.contains("Connection: close\r\n"), "{request:?}: {answer}");
            assert_eq!(
                answer.matches("Content-Length: ").count(),
                1,
                "{request:?}: what follows is answered: {answer}"
            );
            server.assert_serves();
        }
    });
}

#[test]
fn an_empty_line_before_a_request_is_forgiven() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let two = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx\r\nGET / HTTP/1.1\r\n{CLOSE}\r\n");
        for step in [two.len(), 1] {
            let mut stream = server.connect();
            two.as_bytes().chunks(step).for_each(|piece| stream.write_all(piece).unwrap());
            assert_eq!(read_to_end(&mut stream).matches("HTTP/1.1 200").count(), 2);
        }
    });
}

#[test]
fn answers_have_the_bodies_that_their_method_and_status_allow() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let ask = |line: &str| server.ask(format!("{line} HTTP/1.1\r\n{CLOSE}\r\n").as_bytes());
        let head = ask("HEAD /later");
        assert!(head.contains("Content-Length: 19\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        let head = ask("HEAD /stream/a");
        assert!(head.contains("Transfer-Encoding: chunked\r\n") && head.contains("X-Stream: yes\r\n"), "{head}");
        assert!(head.ends_with("\r\n\r\n") && !head.contains("event"), "{head}");
        assert_eq!(server.stream("a").reader_count(), 0);
        let nothing = ask("GET /nothing");
        assert!(nothing.ends_with("\r\n\r\n") && !nothing.contains("Content-Length"), "{nothing}");
        assert_eq!(ask("GET /large").split_once("\r\n\r\n").unwrap().1.len(), 300_000);
        assert!(ask("HEAD /large").ends_with("\r\n\r\n"));
    });
}

#[test]
fn http_1_0_is_closed_unless_it_asks_otherwise() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        assert!(server.ask(b"GET / HTTP/1.0\r\n\r\n").contains("Connection: close\r\n"));
        let kept = server.ask(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n");
        assert_eq!(kept.matches("HTTP/1.1 200").count(), 2, "{kept}");
        assert_eq!(kept.matches("Connection: keep-alive\r\n").count(), 1, "{kept}");
    });
}

#[test]
fn an_answer_may_come_from_another_thread_or_from_nobody() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        for (path, expected) in [("/later", "from another thread"), ("/dropped", "nobody"), ("/waits", "false")] {
            let answer = server.ask(format!("GET {path} HTTP/1.1\r\n{CLOSE}\r\n").as_bytes());
            assert!(answer.ends_with(expected), "{path}: {answer}");
        }
    });
}

#[test]
fn posts_from_many_threads_reach_their_connections() {
    on_both_drivers(|driver| {
        let server = Server::start_many(2, driver, |_| {});
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let mut client = server.connect();
                scope.spawn(move || {
                    for _ in 0..20 {
                        write!(client, "GET /later HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                        read_until(&mut client, "from another thread");
                    }
                });
            }
        });
    });
}

#[test]
fn connections_are_spread_over_the_reactors() {
    on_both_drivers(|driver| {
        let server = Server::start_many(4, driver, |_| {});
        let clients: Vec<_> = (0..400).map(|_| server.connect()).collect();
        eventually("all are accepted", || server.sum(|s| s.connections_accepted()) == 400);
        // The kernel deals them by a hash: a hundred each, give or take nine.
        let each: Vec<_> = server.stats.iter().map(|s| s.connections_accepted()).collect();
        assert!(each.iter().all(|count| (50..150).contains(count)), "{each:?}");
        drop(clients);
    });
}

#[test]
fn a_bug_in_the_service_costs_one_connection() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut bystander = server.connect();
        let answer = server.ask(b"GET /bug HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("X-Path: /bug"), "{answer}");
        assert_eq!(answer.matches("Content-Length").count(), 1, "{answer}");
        assert_eq!(server.sum(ReactorStats::panics), 1);
        write!(bystander, "GET / HTTP/1.1\r\n{CLOSE}\r\n").unwrap();
        assert!(read_to_end(&mut bystander).starts_with("HTTP/1.1 200"));
    });
}
