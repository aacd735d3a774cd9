//! Chats at the gateway, as clients of other servers have them.

use anyhow::{Context, Result, ensure};
use cucumber::{given, then, when};
use serde_json::{Value, json};

use super::world::{Key, TestWorld, shown};
use crate::harness::{Client, Event, EventStream, Opened, PATIENCE, Request};

const CHAT: &str = "/v1/chat/completions";
const ENDLESS: &str = "somebody's chat";
const WAITING: &str = "my waiting chat";

impl TestWorld {
    fn gateway(&mut self) -> Result<Client> {
        let key = self.key.clone();
        let client = self.server()?.gateway()?;
        Ok(match key {
            Key::Right => client,
            Key::None | Key::Other(_) => client.without_key(),
        })
    }

    fn open_chat(&mut self, name: &str, body: &Value) -> Result<()> {
        match self.gateway()?.open(&Request::post(CHAT, body))? {
            Opened::Stream(stream) => drop(self.streams.insert(name.to_owned(), stream)),
            Opened::Answer(answer) => anyhow::bail!("no stream: {}", shown(&answer)),
        }
        Ok(())
    }
}

fn chat(said: &str) -> Value {
    json!({
        "model": "wren", "messages": [{"role": "user", "content": said}], "temperature": 0, "max_tokens": 40,
    })
}

fn streamed_text(stream: &EventStream) -> Result<String> {
    let mut text = String::new();
    for event in stream.events().iter().filter(|e| e.data != "[DONE]") {
        text.push_str(event.json()?["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    Ok(text)
}

#[given("the gateway is open")]
fn is_open(world: &mut TestWorld) {
    world.settings.set("gateway_listen", "127.0.0.1:0");
    world.settings.set("heartbeat_ms", 200);
}

#[given("somebody's endless chat is running")]
fn endless_chat(world: &mut TestWorld) -> Result<()> {
    let mut body = chat("Tell me everything");
    body["max_tokens"] = json!(1900);
    body["ignore_eos"] = json!(true);
    body["stream"] = json!(true);
    world.open_chat(ENDLESS, &body)?;
    world.stream(ENDLESS)?.wait_until(PATIENCE, |events: &[Event]| events.len() > 2)
}

#[when("that somebody leaves")]
fn leaves(world: &mut TestWorld) -> Result<()> {
    world.stream(ENDLESS)?.close();
    Ok(())
}

#[when(regex = r#"^I chat "([^"]*)" at the gateway$"#)]
fn i_chat(world: &mut TestWorld, said: String) -> Result<()> {
    let answer = world.gateway()?.send(&Request::post(CHAT, &chat(&said)))?;
    world.set_answer(answer);
    Ok(())
}

#[when(regex = r#"^I chat "([^"]*)" at the gateway as a stream$"#)]
fn i_chat_streaming(world: &mut TestWorld, said: String) -> Result<()> {
    let mut body = chat(&said);
    body["stream"] = json!(true);
    world.open_chat("my chat", &body)?;
    world.stream("my chat")?.wait_for_end(PATIENCE)
}

#[when("I begin to chat at the gateway and wait")]
fn i_wait(world: &mut TestWorld) -> Result<()> {
    let mut body = chat("Hello?");
    body["stream"] = json!(true);
    world.open_chat(WAITING, &body)
}

#[when("I ask the gateway for a chat with tools")]
fn with_tools(world: &mut TestWorld) -> Result<()> {
    let mut body = chat("What is the weather?");
    body["tools"] = json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
    let answer = world.gateway()?.send(&Request::post(CHAT, &body))?;
    world.set_answer(answer);
    Ok(())
}

#[then("the chat is answered to its end")]
fn answered(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?;
    ensure!(answer.status == 200, "not answered: {}", shown(answer));
    let choice = &answer.json()?["choices"][0];
    let text = choice["message"]["content"].as_str().unwrap_or_default();
    ensure!(!text.is_empty() && ["stop", "length"].iter().any(|r| choice["finish_reason"] == *r), "{choice}");
    Ok(())
}

#[then("the chat's answer tells how to find and repeat it")]
fn repeatable(world: &mut TestWorld) -> Result<()> {
    let answer = world.answer()?.json()?;
    let facts = &answer["choices"][0]["orchestratord"];
    let is_there = facts["seed"].is_u64() && facts["task_id"].is_string() && answer["system_fingerprint"].is_string();
    ensure!(is_there, "{answer}");
    let transcript = facts["transcript"].as_str().context("no transcript")?.to_owned();
    let found = world.send(&Request::get(&format!("/v1/artifacts/{transcript}")))?;
    ensure!(found.status == 200, "the transcript is not there: {}", shown(found));
    Ok(())
}

#[then("both chats say the same")]
fn same(world: &mut TestWorld) -> Result<()> {
    let whole = world.answer()?.json()?["choices"][0]["message"]["content"].clone();
    let streamed = streamed_text(world.stream("my chat")?)?;
    ensure!(whole == streamed.as_str(), "{whole} and {streamed:?}");
    Ok(())
}

#[then("I am told my place in the queue while I wait")]
fn told_place(world: &mut TestWorld) -> Result<()> {
    let stream = world.stream(WAITING)?;
    stream.wait_for_comments(PATIENCE, 1)?;
    let text = String::from_utf8_lossy(&stream.bytes()).into_owned();
    ensure!(text.contains(": queued position=0 eta_ms="), "{text}");
    ensure!(stream.head.header("x-queue-position") == Some("0"), "{:?}", stream.head.headers);
    Ok(())
}

#[then(regex = r#"^the gateway refuses it as "([^"]+)" about (nothing|"([^"]+)")$"#)]
fn gateway_refuses(world: &mut TestWorld, code: String, _about: String, param: String) -> Result<()> {
    let answer = world.answer()?;
    let error = &answer.json()?["error"];
    ensure!(answer.status >= 400 && error["code"] == code.as_str(), "not {code}: {}", shown(answer));
    ensure!(error["param"].as_str().unwrap_or_default() == param, "not about {param:?}: {}", shown(answer));
    Ok(())
}

#[then(regex = r"^a client's own retry is told (when|not) to come$")]
fn retry(world: &mut TestWorld, how: String) -> Result<()> {
    let answer = world.answer()?;
    let told = (answer.header("x-should-retry"), answer.header("retry-after-ms").is_some());
    let wanted = if how == "when" { (Some("true"), true) } else { (Some("false"), false) };
    ensure!(told == wanted, "{told:?}: {}", shown(answer));
    Ok(())
}
