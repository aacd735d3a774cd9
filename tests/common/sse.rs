//! Server-sent events as text: parsed strictly, and held against the order that a task's stream promises.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub id: u64,
    pub name: String,
    pub data: String,
}

impl Event {
    pub fn json(&self) -> Result<Value, String> {
        serde_json::from_str(&self.data)
            .map_err(|e| format!("{} event's data is not JSON ({e}): {}", self.name, self.data))
    }

    pub fn field(&self, name: &str) -> Value {
        self.json().expect("data is JSON").get(name).cloned().unwrap_or(Value::Null)
    }
}

/// Reads whole events; comments are skipped, anything unexpected is an error.
pub fn parse(text: &str) -> Result<Vec<Event>, String> {
    let mut events = Vec::new();
    for block in text.split("\n\n").map(|b| b.trim_matches('\n')).filter(|b| !b.is_empty()) {
        events.extend(parse_one(block)?);
    }
    Ok(events)
}

/// One event without its blank line; `None` when the block holds comments only.
pub fn parse_one(block: &str) -> Result<Option<Event>, String> {
    let (mut id, mut name, mut data) = (None, None, None);
    for line in block.lines().filter(|l| !l.starts_with(':')) {
        let (field, value) = line.split_once(':').ok_or_else(|| format!("a line without a colon: {line}"))?;
        let value = value.strip_prefix(' ').unwrap_or(value);
        let place = match field {
            "id" => &mut id,
            "event" => &mut name,
            "data" => &mut data,
            _ => return Err(format!("unknown field {field}")),
        };
        if place.replace(value.to_owned()).is_some() {
            return Err(format!("{field} twice in one event: {block}"));
        }
    }
    match (id, name, data) {
        (None, None, None) => Ok(None),
        (Some(id), Some(name), Some(data)) => {
            let id = id.parse().map_err(|_| format!("id {id} is not a number"))?;
            Ok(Some(Event { id, name, data }))
        }
        _ => Err(format!("an event needs id, event and data: {block}")),
    }
}

/// `started`, then tokens from 0 without a gap, `metrics` only after a token, and one last `end` or `error`.
///
/// A stream that was taken up in the middle may begin anywhere, but its numbers go on by one.
pub fn check_order(events: &[Event]) -> Result<(), String> {
    let Some(last) = events.last() else { return Err("no events".to_owned()) };
    if !matches!(last.name.as_str(), "end" | "error") {
        return Err(format!("the last event is {}", last.name));
    }
    let mut next_token = None;
    let was_canceled = last.field("finish_reason") == "canceled";
    for (index, event) in events.iter().enumerate() {
        // Who opens a canceled stream late is not shown its tokens any more.
        let may_skip = was_canceled && index + 1 == events.len();
        let due = events[0].id + index as u64;
        if event.id != due && !(may_skip && event.id > due) {
            return Err(format!("event {} comes at place {index} after {}", event.id, events[0].id));
        }
        let from_start = events[0].id == 0;
        match event.name.as_str() {
            "started" if event.id == 0 => next_token = Some(0),
            "started" => return Err(format!("started is event {}", event.id)),
            "token" => {
                let given = event.field("i").as_u64().ok_or("a token without index")?;
                if next_token.is_some_and(|wanted| wanted != given) {
                    return Err(format!("token {given} where {next_token:?} is due"));
                }
                next_token = Some(given + 1);
            }
            "metrics" if from_start && matches!(next_token, None | Some(0)) => {
                return Err("metrics before the first token".to_owned());
            }
            "end" | "error" if index + 1 != events.len() => return Err(format!("events after {}", event.name)),
            _ => {}
        }
        if from_start && index == 0 && event.name != "started" {
            return Err(format!("the first event is {}", event.name));
        }
    }
    check_end(events, last)
}

/// An `end` that was not a cancel comes after a token and after `metrics`, and counts what was sent.
fn check_end(events: &[Event], last: &Event) -> Result<(), String> {
    let is_whole = events[0].id == 0 && last.name == "end";
    if !is_whole || last.field("finish_reason") == "canceled" {
        return Ok(());
    }
    let count = |name: &str| events.iter().filter(|e| e.name == name).count();
    if count("embedding") == 1 && count("token") == 0 {
        return Ok(());
    }
    if count("token") == 0 || count("metrics") == 0 {
        return Err(format!("{} tokens and {} metrics before end", count("token"), count("metrics")));
    }
    let said = last.field("tokens_out").as_u64().unwrap_or_default();
    if (count("token") as u64) > said {
        return Err(format!("{} token events, but tokens_out is {said}", count("token")));
    }
    Ok(())
}

/// The data of all `token` events, byte for byte.
pub fn token_data(events: &[Event]) -> Vec<&str> {
    events.iter().filter(|e| e.name == "token").map(|e| e.data.as_str()).collect()
}

/// The text that the tokens make together.
pub fn text(events: &[Event]) -> String {
    events.iter().filter(|e| e.name == "token").map(|e| e.field("t").as_str().expect("text").to_owned()).collect()
}
