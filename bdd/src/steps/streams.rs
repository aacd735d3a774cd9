//! Opening streams and reading them: to the end, for a while, twice, from the middle, not at all.

use anyhow::{Context, Result, ensure};
use cucumber::{then, when};
use serde_json::Value;

use super::world::{TestWorld, shown};
use crate::harness::sse::names;
use crate::harness::{Event, EventStream, PATIENCE, Request};

impl TestWorld {
    pub fn stream_request(&self, name: &str) -> Result<Request> {
        Ok(Request::get(&format!("/v1/tasks/{}/stream", self.task_id(name)?)))
    }

    /// Opens the stream of a task; it is kept under the task's name.
    pub fn open_stream(&mut self, name: &str) -> Result<()> {
        let request = self.stream_request(name)?;
        self.open(name, &request)
    }

    /// Reads the stream of a task to its end, from where it is open or from its beginning.
    pub fn read_to_end(&mut self, name: &str) -> Result<()> {
        if !self.streams.contains_key(name) {
            self.open_stream(name)?;
        }
        self.stream(name)?.wait_for_end(PATIENCE)
    }

    /// All events of a stream, once it has ended.
    pub fn ended(&self, name: &str) -> Result<Vec<Event>> {
        let stream = self.stream(name)?;
        stream.wait_for_end(PATIENCE)?;
        Ok(stream.events())
    }

    /// The data of the tokens of a stream that has ended, as they were sent.
    pub fn tokens(&self, name: &str) -> Result<Vec<String>> {
        let events = self.ended(name)?;
        Ok(events.into_iter().filter(|event| event.name == "token").map(|event| event.data).collect())
    }

    /// The text of a stream that has ended.
    pub fn text(&self, name: &str) -> Result<String> {
        let mut text = String::new();
        for token in self.tokens(name)? {
            let token: Value = serde_json::from_str(&token)?;
            text.push_str(token["t"].as_str().context("a token has a text")?);
        }
        Ok(text)
    }

    /// The data of the first event of a kind, which has to come.
    pub fn first_event(&self, name: &str, kind: &str) -> Result<Value> {
        let stream = self.stream(name)?;
        stream.wait_until(PATIENCE, |events| events.iter().any(|event| event.name == kind))?;
        stream.events().iter().find(|event| event.name == kind).context("it was just seen")?.json()
    }
}

pub fn token_count(stream: &EventStream) -> usize {
    stream.events().iter().filter(|event| event.name == "token").count()
}

#[when(regex = r#"^I open the stream of "([^"]+)"$"#)]
fn open(world: &mut TestWorld, name: String) -> Result<()> {
    world.open_stream(&name)
}

#[when(regex = r#"^I open the streams of "([^"]+)", "([^"]+)" and "([^"]+)"$"#)]
fn open_three(world: &mut TestWorld, first: String, second: String, third: String) -> Result<()> {
    [first, second, third].iter().try_for_each(|name| world.open_stream(name))
}

#[when(regex = r#"^I read the stream of "([^"]+)" to its end$"#)]
fn read(world: &mut TestWorld, name: String) -> Result<()> {
    world.read_to_end(&name)
}

#[when(regex = r#"^(\d+) tokens? of "([^"]+)" (?:has|have) arrived$"#)]
fn tokens_arrived(world: &mut TestWorld, count: usize, name: String) -> Result<()> {
    let enough = |events: &[Event]| events.iter().filter(|event| event.name == "token").count() >= count;
    world.stream(&name)?.wait_until(PATIENCE, enough)
}

#[when(regex = r#"^a second reader reads the stream of "([^"]+)" to its end$"#)]
fn second_reader(world: &mut TestWorld, name: String) -> Result<()> {
    let request = world.stream_request(&name)?;
    let second = second(&name);
    world.open(&second, &request)?;
    world.stream(&second)?.wait_for_end(PATIENCE)
}

#[then(regex = r#"^both readers of "([^"]+)" saw the same$"#)]
fn both_saw_the_same(world: &mut TestWorld, name: String) -> Result<()> {
    same(&world.ended(&name)?, &world.ended(&second(&name))?)
}

#[then(regex = r#"^the second reader of "([^"]+)" saw no token and the same end$"#)]
fn second_saw_only_the_end(world: &mut TestWorld, name: String) -> Result<()> {
    let (first, again) = (world.ended(&name)?, world.ended(&second(&name))?);
    ensure!(again.iter().all(|event| event.name != "token"), "it saw {}", names(&again));
    same(&first[first.len() - 1..], &again[again.len() - 1..])
}

#[when(regex = r#"^a reader comes back to the stream of "([^"]+)" after its (\d+)th event$"#)]
fn come_back(world: &mut TestWorld, name: String, count: usize) -> Result<()> {
    let events = world.ended(&name)?;
    let last = events.get(count - 1).context("the stream has fewer events")?;
    let id = last.id.as_deref().context("the event has no id")?;
    let request = world.stream_request(&name)?.with("Last-Event-ID", id);
    let back = second(&name);
    world.open(&back, &request)?;
    world.stream(&back)?.wait_for_end(PATIENCE)
}

#[then(regex = r#"^the reader who came back to "([^"]+)" saw all that came after its (\d+)th event$"#)]
fn saw_the_rest(world: &mut TestWorld, name: String, count: usize) -> Result<()> {
    let rest = world.ended(&name)?.split_off(count);
    ensure!(!rest.is_empty(), "nothing came after it, so nothing was tested");
    same(&rest, &world.ended(&second(&name))?)
}

#[when(regex = r#"^the reader of "([^"]+)" goes away$"#)]
fn reader_goes(world: &mut TestWorld, name: String) -> Result<()> {
    world.streams.remove(&name).context("nobody reads it")?.close();
    Ok(())
}

#[when(regex = r#"^somebody opens the stream of "([^"]+)" and never reads it$"#)]
fn never_read(world: &mut TestWorld, name: String) -> Result<()> {
    let client = world.client()?;
    let mut connection = client.connect()?;
    connection.write(&client.keyed(&world.stream_request(&name)?).encode())?;
    world.connections.push(connection);
    Ok(())
}

#[when(regex = r#"^I read the streams of "([^"]+)" and "([^"]+)" on one connection$"#)]
fn read_on_one_connection(world: &mut TestWorld, first: String, second: String) -> Result<()> {
    let client = world.client()?;
    let mut connection = client.connect()?;
    for name in [first, second] {
        connection.write(&client.keyed(&world.stream_request(&name)?).encode())?;
        world.answers.push(connection.receive("GET")?);
    }
    Ok(())
}

#[then("both streams came whole")]
fn streams_came_whole(world: &mut TestWorld) -> Result<()> {
    ensure!(world.answers.len() == 2);
    for answer in &world.answers {
        let text = answer.text();
        let is_whole = text.contains("event: started") && text.contains("event: end") && text.ends_with("\n\n");
        ensure!(is_whole, "not a whole stream: {}", shown(answer));
    }
    Ok(())
}

/// The name of a stream that is read for the second time.
fn second(name: &str) -> String {
    format!("{name}, read again")
}

fn same(left: &[Event], right: &[Event]) -> Result<()> {
    let told = |events: &[Event]| -> Vec<_> {
        events.iter().map(|event| (event.id.clone(), event.name.clone(), event.data.clone())).collect()
    };
    ensure!(told(left) == told(right), "one saw {:?}\nthe other {:?}", told(left), told(right));
    Ok(())
}
