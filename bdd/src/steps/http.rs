//! HTTP itself: requests as nobody should send them, and as good clients do.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use cucumber::gherkin::Step;
use cucumber::{then, when};

use super::docstring;
use super::tasks::task;
use super::world::{TestWorld, shown};
use crate::harness::server::KEY;
use crate::harness::{Connection, PATIENCE, Request};

impl TestWorld {
    /// Sends bytes on a connection of its own and reads the answer to them.
    ///
    /// The server may close before it has read them all; what counts is what it has said.
    fn send_bytes(&mut self, bytes: &[u8], method: &str) -> Result<()> {
        let mut connection = self.client()?.connect()?;
        let sent = connection.write(bytes);
        let answer = connection.receive(method);
        self.set_answer(answer.map_err(|error| anyhow!("no answer: {error:#}; sending gave {sent:?}"))?);
        self.connections.push(connection);
        Ok(())
    }

    fn last_connection(&mut self) -> Result<&mut Connection> {
        self.connections.last_mut().context("no connection is open")
    }
}

#[when(regex = r#"^I ask for "([^"]+)"$"#)]
fn ask(world: &mut TestWorld, path: String) -> Result<()> {
    world.send(&Request::get(&path)).map(drop)
}

#[when(regex = r#"^I send ([A-Z]+) to "([^"]+)"$"#)]
fn send(world: &mut TestWorld, method: String, path: String) -> Result<()> {
    world.send(&Request::new(&method, &path)).map(drop)
}

#[when(regex = r#"^I send to "([^"]+)" the text$"#)]
fn send_text(world: &mut TestWorld, path: String, step: &Step) -> Result<()> {
    let request = Request::new("POST", &path).with("Content-Type", "application/json");
    world.send(&request.with_body(docstring(step)?)).map(drop)
}

#[when(regex = r#"^I send to "([^"]+)" (?:the bytes `([^`]*)`|bytes that are (not UTF-8)|(\d+) opening brackets)$"#)]
fn send_body(world: &mut TestWorld, path: String, text: String, broken: String, brackets: String) -> Result<()> {
    let body = match (broken.is_empty(), brackets.parse::<usize>()) {
        (false, _) => b"{\"prompt\": \"\xff\xfe\xc3\x28\"}".to_vec(),
        (true, Ok(count)) => vec![b'['; count],
        (true, Err(_)) => text.into_bytes(),
    };
    world.send(&Request::new("POST", &path).with("Content-Type", "application/json").with_body(body)).map(drop)
}

#[when(regex = r#"^I send the bytes "([^"]*)"$"#)]
fn send_escaped(world: &mut TestWorld, text: String) -> Result<()> {
    world.send_bytes(&unescape(&text), "GET")
}

#[when(regex = r"^I send a request with a head of (\d+) bytes$")]
fn send_long_head(world: &mut TestWorld, len: usize) -> Result<()> {
    let request = Request::get("/metrics").with("X-Filler", &"x".repeat(len));
    world.send_bytes(&request.encode(), "GET")
}

#[when(regex = r"^I send a chunked body of (\d+) bytes$")]
fn send_chunked(world: &mut TestWorld, len: usize) -> Result<()> {
    world.send_bytes(&chunked(KEY, &vec![b' '; len], 500), "POST")
}

#[when(regex = r#"^I send the bytes "([^"]*)" and nothing more$"#)]
fn send_and_fall_silent(world: &mut TestWorld, text: String) -> Result<()> {
    let mut connection = world.client()?.connect()?;
    connection.write(&unescape(&text))?;
    world.connections.push(connection);
    Ok(())
}

#[then("the server closes the connection")]
fn closes(world: &mut TestWorld) -> Result<()> {
    ensure!(world.last_connection()?.is_closed_within(PATIENCE), "it stays open");
    Ok(())
}

#[then("the server gives up on it")]
fn gives_up(world: &mut TestWorld) -> Result<()> {
    // Well below what an idle connection is given by default, so it is the setting that speaks.
    let patience = Duration::from_secs(10);
    let connection = world.last_connection()?;
    if let Ok(answer) = connection.receive("GET") {
        ensure!((400..500).contains(&answer.status), "it answered {}", shown(&answer));
    }
    ensure!(connection.is_closed_within(patience), "it still waits");
    Ok(())
}

#[when(regex = r#"^I ask for "([^"]+)" under a correlation id of (\d+) characters$"#)]
fn ask_long_correlation(world: &mut TestWorld, path: String, len: usize) -> Result<()> {
    world.send(&Request::get(&path).with("X-Correlation-Id", &"c".repeat(len))).map(drop)
}

#[when(regex = r"^I send (\d+) requests at once on one connection, each under its own correlation id$")]
fn pipeline(world: &mut TestWorld, count: usize) -> Result<()> {
    let requests = (0..count).map(|n| Request::get("/metrics").with("X-Correlation-Id", &format!("number-{n}")));
    let bytes: Vec<u8> = requests.flat_map(|request| request.encode()).collect();
    let mut connection = world.client()?.connect()?;
    connection.write(&bytes)?;
    for _ in 0..count {
        world.answers.push(connection.receive("GET")?);
    }
    Ok(())
}

#[then(regex = r"^(\d+) answers come in the same order$")]
fn in_order(world: &mut TestWorld, count: usize) -> Result<()> {
    ensure!(world.answers.len() == count);
    for (number, answer) in world.answers.iter().enumerate() {
        let is_its = answer.header("X-Correlation-Id") == Some(&format!("number-{number}"));
        ensure!(answer.status == 200 && is_its, "answer {number} is {} {:?}", answer.status, answer.headers);
    }
    Ok(())
}

#[when(regex = r#"^I send the task "([^"]+)" in chunks of (\d+) bytes$"#)]
fn send_task_chunked(world: &mut TestWorld, name: String, len: usize) -> Result<()> {
    let body = task();
    let bytes = chunked(KEY, body.to_string().as_bytes(), len);
    world.tasks.insert(name, body);
    world.send_bytes(&bytes, "POST")
}

#[when(regex = r#"^I send the task "([^"]+)" and wait to be told to go on$"#)]
fn send_expecting(world: &mut TestWorld, name: String) -> Result<()> {
    let body = task();
    let client = world.client()?;
    let bytes = client.keyed(&Request::post("/v1/tasks", &body).with("Expect", "100-continue")).encode();
    let head_len = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("a head ends")? + 4;
    let mut connection = client.connect()?;
    connection.write(&bytes[..head_len])?;
    let interim = connection.receive_interim()?;
    connection.write(&bytes[head_len..])?;
    let mut answer = connection.receive("POST")?;
    answer.interim.insert(0, interim);
    world.set_answer(answer);
    world.tasks.insert(name, body);
    Ok(())
}

#[then("I was told to go on")]
fn told_to_go_on(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    ensure!(answer.interim == [100], "I was told {:?}", answer.interim);
    Ok(())
}

#[when(regex = r#"^I ask for "([^"]+)" and close my half of the connection$"#)]
fn ask_half_closed(world: &mut TestWorld, path: String) -> Result<()> {
    let client = world.client()?;
    let mut connection = client.connect()?;
    connection.write(&client.keyed(&Request::get(&path)).encode())?;
    connection.finish_writing()?;
    world.set_answer(connection.receive("GET")?);
    Ok(())
}

#[when(regex = r#"^I ask for "([^"]+)" byte by byte$"#)]
fn ask_byte_by_byte(world: &mut TestWorld, path: String) -> Result<()> {
    let client = world.client()?;
    let mut connection = client.connect()?;
    for byte in client.keyed(&Request::get(&path)).encode() {
        connection.write(&[byte])?;
    }
    world.set_answer(connection.receive("GET")?);
    Ok(())
}

#[when(regex = r#"^I ask for "([^"]+)" and to close the connection afterwards$"#)]
fn ask_to_close(world: &mut TestWorld, path: String) -> Result<()> {
    let bytes = Request::get(&path).with("Connection", "close").encode();
    world.send_bytes(&bytes, "GET")
}

#[then("the answer has no body but says how long it would be")]
fn head_only(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    let length: usize = answer.header("Content-Length").unwrap_or_default().parse().context("it does not say")?;
    ensure!(length > 0 && answer.body.is_empty(), "{}", shown(answer));
    Ok(())
}

#[then("the answer is dated")]
fn is_dated(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    ensure!(answer.header("Date").is_some_and(|date| date.ends_with("GMT")), "it is not: {:?}", answer.headers);
    Ok(())
}

/// A task's request whose body comes in chunks.
fn chunked(key: &str, body: &[u8], chunk_len: usize) -> Vec<u8> {
    let mut bytes = format!(
        "POST /v1/tasks HTTP/1.1\r\nHost: a\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for chunk in body.chunks(chunk_len) {
        write!(bytes, "{:x}\r\n", chunk.len()).expect("a vector takes all");
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

/// Turns `{key}` into the key and the pictures of control characters (␀ to ␟) into the bytes that they show.
fn unescape(text: &str) -> Vec<u8> {
    const PICTURES: std::ops::RangeInclusive<char> = '\u{2400}'..='\u{241f}';
    let mut bytes = Vec::new();
    for c in text.replace("{key}", KEY).chars() {
        match c {
            picture if PICTURES.contains(&picture) => bytes.push((u32::from(picture) - 0x2400) as u8),
            other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_stand_for_bytes() {
        assert_eq!(unescape("a␍␊␀é"), "a\r\n\0é".as_bytes());
        assert_eq!(unescape("{key}"), KEY.as_bytes());
    }
}
