//! A process without descriptors: in a process of its own, since all tests of this one would lack them too.

// The limit of descriptors is set, and the processor time read, by system calls.
#![allow(unsafe_code)]

use super::*;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const CHILD: &str = "ORCHESTRATORD_TEST_DRIVER";
const NAME: &str = "infra::reactor::tests::exhaustion::without_descriptors_the_others_are_served";

/// Serves with few descriptors until its standard input ends; says its address and then the time it has used.
fn serve_with_few_descriptors(driver: Driver) {
    let server = Server::start(driver, |_| {});
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: `limit` lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    println!("\n{}", server.address);
    while std::io::stdin().read_line(&mut String::new()).unwrap() > 0 {
        // SAFETY: plain data, filled in by the call.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: `usage` lives through the call.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
        let ms = |t: libc::timeval| t.tv_sec * 1000 + t.tv_usec / 1000;
        println!("\n{}", ms(usage.ru_utime) + ms(usage.ru_stime));
    }
}

#[test]
fn without_descriptors_the_others_are_served() {
    match std::env::var(CHILD).as_deref() {
        Ok("io_uring") => return serve_with_few_descriptors(Driver::IoUring),
        Ok(_) => return serve_with_few_descriptors(Driver::Legacy { reason: "a test".into() }),
        Err(_) => {}
    }
    on_both_drivers(|driver| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, if driver == Driver::IoUring { "io_uring" } else { "legacy" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut orders, mut lines) =
            (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
        let address: SocketAddr = lines.find_map(|l| l.unwrap().parse().ok()).expect("the child says its address");
        let mut used_ms = || {
            writeln!(orders).unwrap();
            lines.find_map(|l| l.unwrap().parse::<u64>().ok()).expect("the child says its time")
        };
        let connect = || {
            let mut client = TcpStream::connect(address).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            write!(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            client
        };
        let mut first = connect();
        read_until(&mut first, "200 OK");
        let mut crowd: std::collections::VecDeque<_> = (0..120).map(|_| connect()).collect();
        let before_ms = used_ms();
        // What was accepted is served all the while; what was not waits, and is not polled for all the time.
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(500) {
            write!(first, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            read_until(&mut first, "200 OK");
            std::thread::sleep(Duration::from_millis(10));
        }
        let waited_ms = used_ms() - before_ms;
        assert!(waited_ms < 250, "{waited_ms} ms of processor time in half a second of waiting");
        // Each that is answered goes and makes room for another.
        while let Some(mut client) = crowd.pop_front() {
            read_until(&mut client, "200 OK");
        }
        drop(orders);
        assert!(child.wait().unwrap().success());
    });
}
