//! Sending tasks, and canceling them.

use std::sync::Barrier;

use anyhow::{Context, Result, ensure};
use cucumber::gherkin::Step;
use cucumber::{given, then, when};
use serde_json::{Value, json};
use uuid::Uuid;

use super::answers::check_refusal;
use super::rows;
use super::world::{TestWorld, shown};
use crate::harness::{Answer, PATIENCE, Request};

/// Words to make prompts of. They are common ones, so that a small vocabulary does not spell them out.
const WORDS: [&str; 23] = [
    "the", "little", "dog", "ran", "to", "a", "big", "tree", "and", "saw", "one", "old", "cat", "who", "was", "very",
    "happy", "with", "his", "new", "red", "ball", "then",
];

/// A short task that any server accepts.
pub fn task() -> Value {
    json!({
        "task_id": Uuid::new_v4().to_string(),
        "session_id": Uuid::new_v4().to_string(),
        "workload": "completion",
        "model_ref": "wren",
        "engine": "cpu",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 24,
        "deadline_ms": 300_000,
        "prompt": "Once upon a time there was a little girl",
    })
}

/// Makes a task so long that it is still running when the scenario has done what it wants to do meanwhile.
pub fn lengthen(task: &mut Value) {
    task["ctx"] = json!(2048);
    task["max_tokens"] = json!(1900);
    task["ignore_end"] = json!(true);
}

/// A prompt of so many words; another `start` is another prompt.
pub fn prompt(word_count: usize, start: usize) -> String {
    let words = (0..word_count).map(|i| WORDS[(start + i * (1 + i / WORDS.len())) % WORDS.len()]);
    words.collect::<Vec<_>>().join(" ")
}

impl TestWorld {
    /// Sends the task and remembers body and answer under the name.
    pub fn send_task(&mut self, name: &str, body: Value) -> Result<()> {
        self.send_task_by(name, &Request::post("/v1/tasks", &body), body)
    }

    pub fn send_task_by(&mut self, name: &str, request: &Request, body: Value) -> Result<()> {
        let answer = self.send(request)?.clone();
        self.tasks.insert(name.to_owned(), body);
        self.admissions.entry(name.to_owned()).or_default().push(answer);
        Ok(())
    }

    /// The latest answer to the task that was sent under this name.
    fn admission(&self, name: &str) -> Result<&Answer> {
        self.admissions.get(name).and_then(|answers| answers.last()).with_context(|| format!("{name} was not sent"))
    }

    /// Sends a task that has to be accepted.
    pub fn send_accepted(&mut self, name: &str, body: Value) -> Result<()> {
        self.send_task(name, body)?;
        ensure!(self.answer()?.status == 202, "{name} was not accepted: {}", shown(self.answer()?));
        Ok(())
    }

    /// Sends a long task and waits for its first token.
    pub fn run_long_task(&mut self, name: &str) -> Result<()> {
        let mut body = task();
        lengthen(&mut body);
        self.send_accepted(name, body)?;
        self.open_stream(name)?;
        self.stream(name)?.wait_until(PATIENCE, |events| events.iter().any(|event| event.name == "token"))
    }

    pub fn cancel(&mut self, name: &str) -> Result<()> {
        let path = format!("/v1/tasks/{}/cancel", self.task_id(name)?);
        self.send(&Request::new("POST", &path)).map(drop)
    }

    /// Changes a task as a step's table says; an empty value takes the field away.
    fn amend(&mut self, body: &mut Value, step: &Step) -> Result<()> {
        for (field, value) in rows(step) {
            if value.is_empty() {
                body.as_object_mut().context("a task is an object")?.remove(field);
            } else {
                let value = serde_json::from_str(value).with_context(|| format!("not JSON: {value}"))?;
                body[field] = value;
            }
        }
        Ok(())
    }
}

#[when(
    regex = r#"^I send the (long )?task "([^"]+)"(?: in the session "([^"]+)")?(?: with a prompt of (\d+) words)?(?: with)?$"#
)]
fn send(world: &mut TestWorld, long: String, name: String, session: String, words: String, step: &Step) -> Result<()> {
    let mut body = task();
    if !long.is_empty() {
        lengthen(&mut body);
    }
    if !session.is_empty() {
        body["session_id"] = json!(world.session_id(&session));
    }
    if !words.is_empty() {
        body["prompt"] = json!(prompt(words.parse()?, 0));
        body["ctx"] = json!(1024);
    }
    world.amend(&mut body, step)?;
    world.send_task(&name, body)
}

#[when(regex = r#"^I send the tasks "([^"]+)" and "([^"]+)"$"#)]
fn send_two(world: &mut TestWorld, first: String, second: String) -> Result<()> {
    world.send_accepted(&first, task())?;
    world.send_accepted(&second, task())
}

/// On two connections, by two threads that wait for each other: which of them is first is not ours to say.
#[when(
    regex = r#"^I send the tasks "([^"]+)" and "([^"]+)" at the same time, (?:each in a session of its own|both in the session "([^"]+)"), with$"#
)]
fn send_at_once(world: &mut TestWorld, first: String, second: String, session: String, step: &Step) -> Result<()> {
    let mut bodies = [task(), task()];
    for body in &mut bodies {
        if !session.is_empty() {
            body["session_id"] = json!(world.session_id(&session));
        }
        world.amend(body, step)?;
    }
    let (client, gun) = (world.client()?, Barrier::new(2));
    let send = |body: &Value| {
        let mut connection = client.connect()?;
        let request = client.keyed(&Request::post("/v1/tasks", body)).encode();
        gun.wait();
        connection.write(&request)?;
        connection.receive("POST")
    };
    let answers = std::thread::scope(|scope| {
        let threads = [0, 1].map(|n| {
            scope.spawn({
                let (body, send) = (&bodies[n], &send);
                move || send(body)
            })
        });
        threads.map(|thread| thread.join().expect("sending does not panic"))
    });
    for ((name, body), answer) in [first, second].into_iter().zip(bodies).zip(answers) {
        world.tasks.insert(name.clone(), body);
        world.admissions.entry(name).or_default().push(answer?);
    }
    Ok(())
}

#[then(regex = r#"^"([^"]+)" and "([^"]+)" are both accepted$"#)]
fn both_accepted(world: &mut TestWorld, first: String, second: String) -> Result<()> {
    for name in [first, second] {
        let answer = world.admission(&name)?;
        ensure!(answer.status == 202, "{name} was not accepted: {}", shown(answer));
    }
    Ok(())
}

#[then(
    regex = r#"^one of "([^"]+)" and "([^"]+)" is accepted and gets (\d+) tokens?, and the other is refused for the policy "([^"]+)"$"#
)]
fn one_accepted(world: &mut TestWorld, first: String, second: String, tokens: usize, policy: String) -> Result<()> {
    let is_accepted = world.admission(&first)?.status == 202;
    let (accepted, refused) = if is_accepted { (first, second) } else { (second, first) };
    let answer = world.admission(&accepted)?;
    ensure!(answer.status == 202, "neither was accepted: {}", shown(answer));
    let answer = world.admission(&refused)?;
    check_refusal(answer, "ADMISSION_REJECT")?;
    ensure!(answer.json()?["policy_label"] == policy.as_str(), "it is refused for something else: {}", shown(answer));
    world.read_to_end(&accepted)?;
    let have = world.tokens(&accepted)?.len();
    ensure!(have == tokens, "{accepted} has {have} tokens");
    Ok(())
}

#[when(regex = r#"^I send the task "([^"]+)" under the correlation id "([^"]+)"$"#)]
fn send_correlated(world: &mut TestWorld, name: String, id: String) -> Result<()> {
    let body = task();
    world.send_task_by(&name, &Request::post("/v1/tasks", &body).with("X-Correlation-Id", &id), body)
}

#[when(regex = r#"^I send the task "([^"]+)" once more(?:, but with)?$"#)]
fn send_again(world: &mut TestWorld, name: String, step: &Step) -> Result<()> {
    let mut body = world.task(&name)?.clone();
    world.amend(&mut body, step)?;
    world.send_task(&name, body)
}

#[when(
    regex = r#"^I send a task "([^"]+)"(?: in the session "([^"]+)")? that is the same as "([^"]+)"(, and cold)?(?:, but with)?$"#
)]
fn send_same(
    world: &mut TestWorld,
    name: String,
    session: String,
    other: String,
    cold: String,
    step: &Step,
) -> Result<()> {
    let mut body = world.task(&other)?.clone();
    body["task_id"] = json!(Uuid::new_v4().to_string());
    if !session.is_empty() {
        body["session_id"] = json!(world.session_id(&session));
    }
    if !cold.is_empty() {
        body["kv_hint"] = json!("cold");
    }
    world.amend(&mut body, step)?;
    world.send_accepted(&name, body)
}

#[when(regex = r#"^I send a task "([^"]+)" like "([^"]+)" that stops at a piece from its middle$"#)]
fn send_stopping(world: &mut TestWorld, name: String, other: String) -> Result<()> {
    let text: Vec<char> = world.text(&other)?.chars().collect();
    ensure!(text.len() >= 20, "{} characters are too few to have a middle", text.len());
    let piece: String = text[text.len() / 2..][..5].iter().collect();
    let mut body = world.task(&other)?.clone();
    body["task_id"] = json!(Uuid::new_v4().to_string());
    body["stop"] = json!([piece]);
    world.notes.insert("piece".to_owned(), json!(piece));
    world.send_accepted(&name, body)
}

#[when(regex = r#"^I send the task "([^"]+)" and read its stream in the same request$"#)]
fn send_and_read(world: &mut TestWorld, name: String) -> Result<()> {
    let body = task();
    let request = Request::post("/v1/tasks", &body).with("Accept", "text/event-stream");
    world.tasks.insert(name.clone(), body);
    world.open(&name, &request)?;
    world.stream(&name)?.wait_for_end(PATIENCE)
}

#[given(regex = r#"^the long task "([^"]+)" is running$"#)]
fn long_task_runs(world: &mut TestWorld, name: String) -> Result<()> {
    world.run_long_task(&name)
}

/// So long that the server knows its own speed on a machine where others are busy too.
#[given("a long task has been done")]
fn long_task(world: &mut TestWorld) -> Result<()> {
    world.run_long_task("long")?;
    world.read_to_end("long")
}

#[given("a quick task has been done")]
fn quick_task(world: &mut TestWorld) -> Result<()> {
    world.send_accepted("quick", task())?;
    world.read_to_end("quick")
}

#[when(regex = r#"^I send (\d+) different tasks with prompts of (\d+) words, one after the other$"#)]
fn send_different(world: &mut TestWorld, count: usize, words: usize) -> Result<()> {
    for number in 0..count {
        let name = format!("different {number}");
        let mut body = task();
        body["prompt"] = json!(prompt(words, number * 3 + 1));
        body["ctx"] = json!(256);
        world.send_accepted(&name, body)?;
        world.read_to_end(&name)?;
    }
    Ok(())
}

#[when(regex = r#"^I cancel "([^"]+)"$"#)]
fn cancel_named(world: &mut TestWorld, name: String) -> Result<()> {
    world.cancel(&name)?;
    let confirmed = world.streams.get(&name).map(|stream| stream.events().len());
    world.notes.insert("events when the cancel was confirmed".to_owned(), json!(confirmed));
    Ok(())
}
