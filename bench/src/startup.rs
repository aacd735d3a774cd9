//! How long a user waits from starting the binary to the first accepted task.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

#[derive(Args)]
pub struct Options {
    /// The server's binary.
    #[arg(long)]
    pub binary: PathBuf,
    /// Model that it serves; without it the built-in one.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Address of the first start; each further one has the next port, for the kernel lets go of a killed ring's sockets
    /// when it likes.
    #[arg(long, default_value = "127.0.0.1:8093")]
    pub listen: SocketAddr,
    /// Times that it is started.
    #[arg(long, default_value_t = 10)]
    pub count: usize,
    /// Prints the times as a list in JSON, milliseconds, in the order of the starts.
    #[arg(long)]
    pub json: bool,
}

/// Starts the binary `count` times and prints the times, milliseconds.
///
/// # Errors
///
/// When the binary cannot be started or accepts nothing within a minute.
pub fn run(options: &Options) -> Result<(), String> {
    let mut times: Vec<f64> = (0..options.count).map(|number| once(options, number)).collect::<Result<_, _>>()?;
    if options.json {
        println!("{}", serde_json::to_string(&times).expect("numbers are JSON"));
        return Ok(());
    }
    times.sort_by(f64::total_cmp);
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("start to first 202: median {median:.1} ms, worst {worst:.1} ms of {}", times.len());
    Ok(())
}

fn once(options: &Options, number: usize) -> Result<f64, String> {
    let port = u16::try_from(usize::from(options.listen.port()) + number).map_err(|_| "there are no ports left")?;
    let address = SocketAddr::new(options.listen.ip(), port);
    let mut command = Command::new(&options.binary);
    if let Some(model) = &options.model {
        command.env("ORCH_MODEL", model);
    }
    let body = first_task(options);
    // Before the program is executed: the loader's time is part of what a user waits for.
    let began = Instant::now();
    let mut server = command
        .env("ORCH_LISTEN", address.to_string())
        .env("ORCH_API_KEYS", "bench-key-of-no-value")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{}: {e}", options.binary.display()))?;
    let mut accepted = Err("nothing was accepted within a minute".to_owned());
    while began.elapsed() < Duration::from_secs(60) {
        if first_202(address, &body) {
            accepted = Ok(began.elapsed().as_secs_f64() * 1000.0);
            break;
        }
        if let Ok(Some(status)) = server.try_wait() {
            accepted = Err(format!("the server at {address} ended at once ({status}): start it by hand to see why"));
            break;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let _ = server.kill();
    let _ = server.wait();
    accepted
}

/// The body of a task for one token.
fn first_task(options: &Options) -> String {
    let name = options.model.as_deref().map(|path| if path.is_dir() { path.file_name() } else { path.file_stem() });
    let name = name.map_or("wren".into(), |name| name.unwrap_or_default().to_string_lossy().into_owned());
    format!(
        r#"{{"task_id":"7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a01","session_id":"7c1ae8d0-3c3c-4b1e-9f0e-2a6f4e2b8a02","workload":"completion","model_ref":"{name}","engine":"cpu","ctx":512,"priority":"interactive","max_tokens":1,"deadline_ms":60000,"prompt":"Once"}}"#
    )
}

fn first_202(address: SocketAddr, body: &str) -> bool {
    let Ok(mut socket) = TcpStream::connect(address) else { return false };
    let request = format!(
        "POST /v1/tasks HTTP/1.1\r\nHost: a\r\nX-API-Key: bench-key-of-no-value\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = socket.set_read_timeout(Some(Duration::from_secs(5)));
    let mut status = [0; 12];
    socket.write_all(request.as_bytes()).is_ok() && socket.read_exact(&mut status).is_ok() && &status == b"HTTP/1.1 202"
}
