//! Tokens become events: text, JSON data, SSE frames, and at the end the terminal event and the transcript.
//!
//! What a stream says is rendered here and nowhere else, so every reader and the transcript see one thing.

use serde::Serialize;

use super::canonical::Object;
use super::session::Budgets;
use crate::domain::task::FinishReason;
use crate::infra::http::sse;

/// Numbers of the `started` event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Started {
    pub queue_position: u32,
    pub predicted_start_ms: u64,
    /// Chance that the last token is there before the deadline.
    pub on_time_probability: f64,
}

/// Numbers of a `metrics` event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamMetrics {
    pub queue_depth: u64,
    pub on_time_probability: f64,
    pub kv_warmth: f64,
    pub tokens_budget_remaining: u64,
    pub time_budget_remaining_ms: u64,
    pub cost_budget_remaining: f64,
}

impl StreamMetrics {
    pub fn new(queue_depth: u64, on_time_probability: f64, kv_warmth: f64, left: Budgets) -> StreamMetrics {
        StreamMetrics {
            queue_depth,
            on_time_probability: thousandths(on_time_probability),
            kv_warmth: thousandths(kv_warmth),
            tokens_budget_remaining: left.tokens,
            time_budget_remaining_ms: left.time_ms,
            cost_budget_remaining: left.cost(),
        }
    }
}

/// Three digits say all that a prediction can.
pub fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Numbers of the `end` event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ended {
    pub tokens_out: u32,
    pub decode_ms: u64,
    pub finish_reason: FinishReason,
}

/// What a token event says beside its text when `logprobs` asked for it.
#[derive(Clone, Copy, Debug)]
pub struct TokenDetail<'a> {
    pub id: u32,
    pub logprob: f32,
    /// The likeliest tokens at this place, the likeliest first.
    pub top: &'a [(u32, f32)],
}

/// Buffers that the engine thread reuses for every event.
#[derive(Default)]
pub struct FrameBuffers {
    data: Vec<u8>,
    frame: Vec<u8>,
}

impl FrameBuffers {
    pub fn started(&mut self, started: Started) -> &[u8] {
        self.event(0, "started", |data| {
            // Canonical, as of the metrics: the transcript takes these bytes as they are.
            Object::write(data, |object| {
                object.number("on_time_probability", started.on_time_probability);
                object.integer("predicted_start_ms", started.predicted_start_ms);
                object.integer("queue_position", started.queue_position.into());
            });
        })
    }

    /// `t` is escaped straight into the frame; nothing is allocated once the buffers have grown.
    pub fn token(&mut self, event_id: u32, index: u32, text: &str, detail: Option<TokenDetail<'_>>) -> &[u8] {
        self.event(event_id, "token", |data| {
            data.extend_from_slice(b"{\"t\":");
            write_json(data, text);
            data.extend_from_slice(b",\"i\":");
            data.extend_from_slice(itoa::Buffer::new().format(index).as_bytes());
            if let Some(detail) = detail {
                data.push(b',');
                write_detail(data, detail);
            }
            data.push(b'}');
        })
    }

    /// A token of the prompt, whose place is `index`.
    pub fn prompt(&mut self, event_id: u32, index: u32, detail: TokenDetail<'_>) -> &[u8] {
        self.event(event_id, "prompt", |data| {
            data.extend_from_slice(b"{\"i\":");
            data.extend_from_slice(itoa::Buffer::new().format(index).as_bytes());
            data.push(b',');
            write_detail(data, detail);
            data.push(b'}');
        })
    }

    pub fn metrics(&mut self, event_id: u32, metrics: &StreamMetrics) -> &[u8] {
        self.event(event_id, "metrics", |data| {
            Object::write(data, |object| {
                object.number("cost_budget_remaining", metrics.cost_budget_remaining);
                object.number("kv_warmth", metrics.kv_warmth);
                object.number("on_time_probability", metrics.on_time_probability);
                object.integer("queue_depth", metrics.queue_depth);
                object.integer("time_budget_remaining_ms", metrics.time_budget_remaining_ms);
                object.integer("tokens_budget_remaining", metrics.tokens_budget_remaining);
            });
        })
    }

    /// A vector; each number is the shortest that reads back to the same bits.
    pub fn embedding(&mut self, event_id: u32, vector: &[f32]) -> &[u8] {
        self.event(event_id, "embedding", |data| {
            data.extend_from_slice(b"{\"embedding\":");
            write_json(data, vector);
            data.push(b'}');
        })
    }

    fn event(&mut self, id: u32, name: &str, fill: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        self.data.clear();
        self.frame.clear();
        fill(&mut self.data);
        sse::write_event(&mut self.frame, id, name, &self.data);
        &self.frame
    }
}

fn write_detail(data: &mut Vec<u8>, detail: TokenDetail<'_>) {
    write_logprob(data, detail.id, detail.logprob);
    for (rank, (id, logprob)) in detail.top.iter().enumerate() {
        data.extend_from_slice(if rank == 0 { b",\"top_logprobs\":[{" } else { b",{" });
        write_logprob(data, *id, *logprob);
        data.push(b'}');
    }
    if !detail.top.is_empty() {
        data.push(b']');
    }
}

fn write_logprob(out: &mut Vec<u8>, id: u32, logprob: f32) {
    out.extend_from_slice(b"\"id\":");
    out.extend_from_slice(itoa::Buffer::new().format(id).as_bytes());
    out.extend_from_slice(b",\"logprob\":");
    write_json(out, &logprob);
}

fn write_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a buffer takes everything");
}

/// How a stream ends on the wire, in place of what is in `out`: the terminal event and the last chunk.
pub fn write_tail(out: &mut Vec<u8>, event_id: u32, name: &str, data: &[u8]) {
    out.clear();
    sse::write_event(out, event_id, name, data);
    out.extend_from_slice(sse::LAST_CHUNK);
}

/// Data of the `end` event in place of what is in `out`, canonical; a transcript has it without `artifact_id`, for it
/// cannot hold its own digest.
pub fn write_end_data(out: &mut Vec<u8>, ended: &Ended, artifact_id: Option<&str>) {
    out.clear();
    Object::write(out, |object| {
        if let Some(id) = artifact_id {
            object.plain("artifact_id", id);
        }
        object.integer("decode_ms", ended.decode_ms);
        object.text("finish_reason", ended.finish_reason.name());
        object.integer("tokens_out", ended.tokens_out.into());
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn data_of(frames: &[u8]) -> Vec<Value> {
        sse::events(frames).map(|e| serde_json::from_slice(e.data).expect("we write JSON")).collect()
    }

    #[test]
    fn a_token_is_escaped_and_read_back() {
        let mut buffers = FrameBuffers::default();
        let mut frames = Vec::new();
        let texts = ["plain", "", "quote \" slash \\ line\nend", "é🦀\u{1}\u{2028}"];
        for (index, text) in (0u32..).zip(texts) {
            frames.extend_from_slice(buffers.token(index + 1, index, text, None));
        }
        let detail = TokenDetail { id: 17, logprob: -0.5, top: &[] };
        frames.extend_from_slice(buffers.token(9, 4, "x", Some(detail)));
        let detail = TokenDetail { top: &[(3, -0.25), (17, -0.5)], ..detail };
        frames.extend_from_slice(buffers.token(10, 5, "y", Some(detail)));
        let detail = TokenDetail { id: 3, ..detail };
        frames.extend_from_slice(buffers.prompt(11, 6, detail));
        let events = data_of(&frames);
        for (index, text) in texts.iter().enumerate() {
            assert_eq!(events[index], json!({"t": text, "i": index}));
        }
        assert_eq!(events[4], json!({"t": "x", "i": 4, "id": 17, "logprob": -0.5}));
        let top = json!([{"id": 3, "logprob": -0.25}, {"id": 17, "logprob": -0.5}]);
        assert_eq!(events[5], json!({"t": "y", "i": 5, "id": 17, "logprob": -0.5, "top_logprobs": top}));
        assert_eq!(events[6], json!({"i": 6, "id": 3, "logprob": -0.5, "top_logprobs": top}));
    }

    #[test]
    fn the_end_has_its_artifact_only_on_the_wire() {
        let ended = Ended { tokens_out: 3, decode_ms: 9, finish_reason: FinishReason::Length };
        let (mut data, mut tail) = (Vec::new(), Vec::new());
        write_end_data(&mut data, &ended, None);
        let kept: Value = serde_json::from_slice(&data).unwrap();
        assert_eq!(kept, json!({"tokens_out": 3, "decode_ms": 9, "finish_reason": "length"}));
        write_end_data(&mut data, &ended, Some("sha256:0"));
        write_tail(&mut tail, 5, "end", &data);
        assert!(tail.ends_with(b"0\r\n\r\n"));
        let text = String::from_utf8(tail).unwrap();
        assert!(text.contains("id: 5\nevent: end\ndata: {") && text.contains("\"artifact_id\":\"sha256:0\""));
    }
}
