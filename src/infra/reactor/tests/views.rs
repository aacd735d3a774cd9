//! Views: logs in another form, as they grow or all at once, for clients that stay and that go.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

/// Writes the events' names of two logs, and counts those of its kind that are alive.
struct Names {
    seen: Vec<u8>,
    alive: Arc<AtomicUsize>,
}

impl View for Names {
    fn events(&mut self, source: usize, frames: &[u8], out: &mut Vec<u8>) {
        for event in sse::events(frames) {
            let text = format!("{source}:{} ", String::from_utf8_lossy(event.name));
            self.seen.extend_from_slice(text.as_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"over");
    }

    fn answer(&mut self) -> Response {
        Response::new(200).body(std::mem::take(&mut self.seen))
    }

    fn silence(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"(silence)");
    }

    fn patience(&self) -> Option<Duration> {
        Some(Duration::from_millis(60))
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, SeqCst);
    }
}

/// A view of two logs, for a path that ends in their names.
pub(super) fn names(echo: &Echo, logs: &str, whole: bool, wake: &Wake) -> Reply {
    let open = |name: &str| echo.open(name).attach(wake.address(), None).expect("few readers");
    echo.views.fetch_add(1, SeqCst);
    Reply::View {
        head: (!whole).then(|| Response::new(200)),
        readers: logs.split('+').map(open).collect(),
        view: Box::new(Names { seen: Vec::new(), alive: echo.views.clone() }),
    }
}

fn append(server: &Server, name: &str, id: u32) {
    server.append(name, &frame(id, "token"));
    server.hub.ring_all();
}

#[test]
fn a_view_shows_logs_as_they_grow_and_says_that_it_is_over() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut client = server.connect();
        write!(client, "GET /view/a+b HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_until(&mut client, "1:started ");
        append(&server, "b", 1);
        read_until(&mut client, "1:token ");
        finish(&server.stream("b"));
        read_until(&mut client, "(silence)");
        append(&server, "a", 1);
        finish(&server.stream("a"));
        let rest = read_until(&mut client, "\r\n0\r\n\r\n");
        // In one chunk or in two.
        let places = ["0:token ", "0:end over"].map(|text| rest.find(text));
        assert!(places[0].is_some() && places[0] < places[1], "{rest}");
        eventually("the view is dropped", || server.echo.views.load(SeqCst) == 0);
        // The connection goes on.
        write!(client, "GET / HTTP/1.1\r\n{CLOSE}\r\n").unwrap();
        assert!(read_to_end(&mut client).starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_view_of_everything_answers_at_the_end_and_nobody_is_held_up_meanwhile() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut client = server.connect();
        write!(client, "GET /whole/a HTTP/1.1\r\n{CLOSE}\r\n").unwrap();
        let stream = server.stream("a");
        append(&server, "a", 1);
        std::thread::sleep(Duration::from_millis(150));
        // The same reactor answers others at once.
        let began = Instant::now();
        server.assert_serves();
        assert!(began.elapsed() < Duration::from_secs(5));
        finish(&stream);
        let answer = read_to_end(&mut client);
        assert!(answer.ends_with("\r\n\r\n0:started 0:token 0:end "), "{answer}");
        assert!(answer.contains("Content-Length: 24\r\n"), "{answer}");
    });
}

#[test]
fn the_view_of_a_client_that_left_is_dropped() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        for path in ["/view/a", "/whole/a"] {
            let mut client = server.connect();
            write!(client, "GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            eventually("there is a view", || server.echo.views.load(SeqCst) == 1);
            drop(client);
            eventually("the view is dropped", || server.echo.views.load(SeqCst) == 0);
            eventually("the reader is gone", || server.stream("a").reader_count() == 0);
        }
    });
}

#[test]
fn a_muted_log_is_quiet_for_views_too() {
    on_both_drivers(|driver| {
        let server = Server::start(driver, |_| {});
        let mut client = server.connect();
        write!(client, "GET /view/a HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        read_until(&mut client, "0:started ");
        let stream = server.stream("a");
        stream.mute();
        append(&server, "a", 1);
        finish(&stream);
        let rest = read_until(&mut client, "\r\n0\r\n\r\n");
        assert!(rest.contains("0:end over") && !rest.contains("0:token"), "{rest}");
    });
}
