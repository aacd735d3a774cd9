//! The transcript of a task as canonical JSON (RFC 8785), written into one buffer from the frames that were sent.

use serde_json::Value;

use super::artifacts::canonical;
use super::canonical::Object;
use crate::infra::http::sse;

/// A document under construction: `content.events` first, then what it takes to decode them again.
pub struct Transcript<'a> {
    out: &'a mut Vec<u8>,
    tokens: u32,
    events: u32,
}

impl Transcript<'_> {
    /// Begins a document in a buffer, whose content is forgotten.
    pub fn begin(out: &mut Vec<u8>) -> Transcript<'_> {
        out.clear();
        out.extend_from_slice(b"{\"content\":{\"events\":[");
        Transcript { out, tokens: 0, events: 0 }
    }

    /// Adds the events of some whole frames.
    pub fn read(&mut self, frames: &[u8]) {
        for event in sse::events(frames) {
            match event.name {
                b"token" => {
                    self.tokens += 1;
                    match plain_token(event.data) {
                        Some((text, index)) => self.token(text, index),
                        None => self.foreign("token", event.data),
                    }
                }
                // These were written canonical.
                b"started" => self.push("started", event.data),
                b"metrics" => self.push("metrics", event.data),
                other => self.foreign(std::str::from_utf8(other).expect("we write UTF-8"), event.data),
            }
        }
    }

    fn token(&mut self, text: &[u8], index: &[u8]) {
        self.separate();
        for part in [b"{\"data\":{\"i\":", index, b",\"t\":", text, b"},\"type\":\"token\"}"] {
            self.out.extend_from_slice(part);
        }
    }

    /// Data whose keys are in another order.
    fn foreign(&mut self, name: &str, data: &[u8]) {
        let data: Value = serde_json::from_slice(data).expect("we write JSON");
        self.push(name, &canonical(&data));
    }

    /// Adds an event. Its name is one of ours and needs no escapes; its data is canonical.
    pub fn push(&mut self, name: &str, data: &[u8]) {
        self.separate();
        for part in [b"{\"data\":", data, b",\"type\":\"", name.as_bytes(), b"\"}"] {
            self.out.extend_from_slice(part);
        }
    }

    fn separate(&mut self) {
        if self.events > 0 {
            self.out.push(b',');
        }
        self.events += 1;
    }

    /// Token events so far.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Ends the document.
    pub fn finish(self, metadata: impl FnOnce(&mut Object<'_>)) {
        self.out.extend_from_slice(b"]},\"kind\":\"trace\",\"metadata\":");
        Object::write(self.out, metadata);
        self.out.extend_from_slice(b",\"tags\":[\"transcript\"]}");
    }
}

/// Text (with its quotes) and index of a token's data, if there is nothing else in it. Our escapes are those of the
/// canonical form, so the text can stay as it is.
fn plain_token(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = data.strip_prefix(b"{\"t\":")?.strip_suffix(b"}")?;
    let digits = inner.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let (before, index) = inner.split_at(inner.len() - digits);
    // Within a JSON string every quote has a backslash before it: this one ends the text.
    let text = before.strip_suffix(b",\"i\":")?;
    let is_string = text.len() >= 2 && text[0] == b'"' && text[text.len() - 1] == b'"';
    (is_string && digits > 0).then_some((text, index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::streaming::{FrameBuffers, Started, StreamMetrics, TokenDetail};
    use serde_json::json;

    #[test]
    fn a_transcript_is_written_as_its_tree_would_be() {
        let mut buffers = FrameBuffers::default();
        let mut frames = Vec::new();
        let started = Started { queue_position: 3, predicted_start_ms: 17, on_time_probability: 1.0 };
        frames.extend_from_slice(buffers.started(started));
        let texts = ["plain", "", "\",\"i\":7", "quote \" slash \\ line\nend\t\u{8}\u{c}", "é🦀\u{1}\u{7f}\u{2028}\\"];
        for (index, text) in (0u32..).zip(texts) {
            frames.extend_from_slice(buffers.token(index + 1, index, text, None));
        }
        let metrics = StreamMetrics {
            queue_depth: 2,
            on_time_probability: 0.123,
            kv_warmth: 0.0,
            tokens_budget_remaining: 1_000_000,
            time_budget_remaining_ms: 5,
            cost_budget_remaining: 999.999_9,
        };
        frames.extend_from_slice(buffers.metrics(6, &metrics));
        let detail = TokenDetail { id: 17, logprob: -0.5, top: &[] };
        frames.extend_from_slice(buffers.token(7, 5, "x", Some(detail)));

        let end = json!({"tokens_out": 6, "decode_ms": 3, "cost": 1e21});
        let metadata = json!({"seed": 7, "temperature": 0.699_999_988, "a": [1, 2.5]});
        let mut out = b"left from the last one".to_vec();
        let mut transcript = Transcript::begin(&mut out);
        // A log has several pieces, and each has whole frames.
        let half = buffers.started(started).len();
        transcript.read(&frames[..half]);
        transcript.read(&frames[half..]);
        transcript.push("end", &canonical(&end));
        assert_eq!(transcript.tokens(), 6);
        transcript.finish(|object| {
            object.value("a", &metadata["a"]);
            object.integer("seed", 7);
            object.number("temperature", 0.699_999_988);
        });

        let mut tree: Vec<Value> = sse::events(&frames)
            .map(|e| {
                let name = std::str::from_utf8(e.name).unwrap();
                json!({"type": name, "data": serde_json::from_slice::<Value>(e.data).unwrap()})
            })
            .collect();
        tree.push(json!({"type": "end", "data": end}));
        let document =
            json!({"kind": "trace", "content": {"events": tree}, "tags": ["transcript"], "metadata": metadata});
        assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8(canonical(&document)).unwrap());
    }

    #[test]
    fn a_task_that_was_never_started_has_no_events() {
        let mut out = Vec::new();
        Transcript::begin(&mut out).finish(|_| ());
        let document: Value = serde_json::from_slice(&out).unwrap();
        assert!(document["content"]["events"].as_array().unwrap().is_empty());
    }
}
