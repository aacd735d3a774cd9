//! The transcript of a task as canonical JSON (RFC 8785), written as such: a tree of values for every token would
//! cost ten times the token.

use serde_json::Value;

use super::artifacts::canonical;
use crate::infra::http::sse;

/// The events of a stream as they were sent, in the form that `content.events` has in the canonical document.
#[derive(Default)]
pub struct Events {
    /// Elements of the array, each followed by a comma.
    items: Vec<u8>,
    tokens: u32,
}

impl Events {
    /// Reads the events back from a log's frames.
    pub fn of(frames: &[u8]) -> Events {
        let mut events = Events { items: Vec::with_capacity(frames.len()), tokens: 0 };
        for event in sse::events(frames) {
            let is_token = event.name == b"token";
            events.tokens += u32::from(is_token);
            match is_token.then(|| plain_token(event.data)).flatten() {
                Some((text, index)) => {
                    for part in [b"{\"data\":{\"i\":", index, b",\"t\":", text, b"},\"type\":\"token\"},"] {
                        events.items.extend_from_slice(part);
                    }
                }
                None => {
                    let data: Value = serde_json::from_slice(event.data).expect("we write JSON");
                    events.push(std::str::from_utf8(event.name).expect("we write UTF-8"), &data);
                }
            }
        }
        events
    }

    /// Adds the last event. Its name is one of ours and needs no escapes.
    pub fn push(&mut self, name: &str, data: &Value) {
        self.items.extend_from_slice(b"{\"data\":");
        self.items.extend_from_slice(&canonical(data));
        self.items.extend_from_slice(b",\"type\":\"");
        self.items.extend_from_slice(name.as_bytes());
        self.items.extend_from_slice(b"\"},");
    }

    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The whole document, canonical as `metadata` is: its keys are in their order here.
    pub fn document(&self, metadata: &[u8]) -> Vec<u8> {
        let items = self.items.strip_suffix(b",").unwrap_or(&self.items);
        let parts: [&[u8]; 5] = [
            b"{\"content\":{\"events\":[",
            items,
            b"]},\"kind\":\"trace\",\"metadata\":",
            metadata,
            b",\"tags\":[\"transcript\"]}",
        ];
        parts.concat()
    }
}

/// A canonical object under construction: whoever writes it gives the keys in their order.
pub struct Object {
    out: Vec<u8>,
    last_key: &'static str,
}

impl Object {
    pub fn new() -> Object {
        Object { out: b"{".to_vec(), last_key: "" }
    }

    pub fn text(&mut self, key: &'static str, text: &str) {
        self.key(key);
        // The escapes of this writer are those of the canonical form.
        serde_json::to_writer(&mut self.out, text).expect("a buffer takes everything");
    }

    /// A whole number up to 2^53, beyond which JSON does not keep them.
    pub fn integer(&mut self, key: &'static str, value: u64) {
        self.key(key);
        self.push_integer(value);
    }

    pub fn integers(&mut self, key: &'static str, values: &[u32]) {
        self.key(key);
        self.out.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.push_integer(u64::from(*value));
        }
        self.out.push(b']');
    }

    /// A finite number.
    pub fn number(&mut self, key: &'static str, value: f32) {
        let is_small_integer = (0.0..1e6).contains(&value) && value.fract() == 0.0;
        if is_small_integer { self.integer(key, value as u64) } else { self.value(key, &Value::from(value)) }
    }

    /// Anything else.
    pub fn value(&mut self, key: &'static str, value: &Value) {
        self.key(key);
        self.out.extend_from_slice(&canonical(value));
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.out.push(b'}');
        self.out
    }

    fn key(&mut self, key: &'static str) {
        assert!(self.last_key < key, "the canonical form has {key:?} before {:?}", self.last_key);
        if !self.last_key.is_empty() {
            self.out.push(b',');
        }
        self.last_key = key;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn push_integer(&mut self, value: u64) {
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}

impl Default for Object {
    fn default() -> Self {
        Object::new()
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
    use crate::services::streaming::{FrameBuffers, TokenDetail};
    use serde_json::json;

    #[test]
    fn a_transcript_is_written_as_its_tree_would_be() {
        let mut buffers = FrameBuffers::default();
        let mut frames = Vec::new();
        let texts = ["plain", "", "\",\"i\":7", "quote \" slash \\ line\nend\t\u{8}\u{c}", "é🦀\u{1}\u{7f}\u{2028}\\"];
        for (index, text) in (0u32..).zip(texts) {
            frames.extend_from_slice(buffers.token(index, index, text, None));
        }
        let detail = TokenDetail { id: 17, logprob: -0.5, top: &[] };
        frames.extend_from_slice(buffers.token(5, 5, "x", Some(detail)));
        let mut events = Events::of(&frames);
        let end = json!({"tokens_out": 6, "decode_ms": 3, "cost": 1e21});
        events.push("end", &end);
        assert_eq!(events.tokens(), 6);

        let mut tree: Vec<Value> = sse::events(&frames)
            .map(|e| json!({"type": "token", "data": serde_json::from_slice::<Value>(e.data).unwrap()}))
            .collect();
        tree.push(json!({"type": "end", "data": end}));
        let metadata = json!({"seed": 7, "temperature": 0.699_999_988, "a": [1, 2.5]});
        let document =
            json!({"kind": "trace", "content": {"events": tree}, "tags": ["transcript"], "metadata": metadata});
        assert_eq!(
            String::from_utf8(events.document(&canonical(&metadata))).unwrap(),
            String::from_utf8(canonical(&document)).unwrap()
        );
        let none = Events::default().document(&canonical(&metadata));
        assert!(serde_json::from_slice::<Value>(&none).unwrap()["content"]["events"].as_array().unwrap().is_empty());
    }
    #[test]
    fn an_object_is_written_as_its_tree_would_be() {
        let mut object = Object::new();
        object.integers("a", &[]);
        object.integers("b", &[1, 20_000, u32::MAX]);
        object.number("c", 0.7);
        object.number("d", -0.0);
        object.number("e", 100.0);
        object.number("f", 1e9);
        object.text("g", "quote \" slash \\ line\nend é🦀\u{1}\u{7f}\u{2028}");
        object.integer("h", (1 << 53) - 1);
        object.value("i", &json!({"z": [true, null], "y": 1e-7}));
        let tree = json!({
            "i": {"z": [true, null], "y": 1e-7}, "h": (1u64 << 53) - 1,
            "g": "quote \" slash \\ line\nend é🦀\u{1}\u{7f}\u{2028}",
            "f": 1e9f32, "e": 100.0, "d": -0.0f32, "c": 0.7f32, "b": [1, 20_000, u32::MAX], "a": [],
        });
        assert_eq!(String::from_utf8(object.finish()).unwrap(), String::from_utf8(canonical(&tree)).unwrap());
    }
}
