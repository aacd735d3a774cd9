//! Reads a stream of server-sent events and holds it to what its API promises, while it is being measured.

/// Whose events they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `started`, `token`…, `metrics`…, `end`, each with its number.
    Ours,
    /// `data: {…}` per token, then `data: [DONE]`.
    OpenAi,
}

/// What an event means to the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Token,
    /// The stream has ended well, with so many tokens by the server's own count.
    End {
        tokens: Option<u32>,
    },
    /// The task has failed; the stream is over.
    Error,
    Other,
}

/// Checks one stream.
pub struct StreamCheck {
    api: Api,
    rest: Vec<u8>,
    events: u32,
    tokens: u32,
    finished: bool,
    reported: Option<u32>,
    done: bool,
}

impl StreamCheck {
    pub fn new(api: Api) -> StreamCheck {
        StreamCheck { api, rest: Vec::new(), events: 0, tokens: 0, finished: false, reported: None, done: false }
    }

    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The terminal event was seen.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Reads more of the stream.
    ///
    /// # Errors
    ///
    /// When events are missing, doubled, out of order or come after the last one.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Seen)) -> Result<(), String> {
        if self.rest.is_empty() {
            let used = self.events(bytes, &mut each)?;
            self.rest.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let used = self.events(&rest, &mut each)?;
        rest.drain(..used);
        self.rest = rest;
        Ok(())
    }

    fn events(&mut self, bytes: &[u8], each: &mut impl FnMut(Seen)) -> Result<usize, String> {
        let mut at = 0;
        let mut from = 0;
        while let Some(len) = bytes[from..].iter().position(|&b| b == b'\n') {
            let line_end = from + len;
            from = line_end + 1;
            if bytes.get(from) == Some(&b'\n') {
                let text = std::str::from_utf8(&bytes[at..line_end]).map_err(|_| "an event is not UTF-8")?;
                each(self.event(text)?);
                at = from + 1;
                from = at;
            }
        }
        Ok(at)
    }

    fn event(&mut self, text: &str) -> Result<Seen, String> {
        let (mut id, mut name, mut data) = (None, "", "");
        for line in text.split('\n') {
            if let Some(value) = line.strip_prefix("data:") {
                data = value.trim_start();
            } else if let Some(value) = line.strip_prefix("event:") {
                name = value.trim();
            } else if let Some(value) = line.strip_prefix("id:") {
                id = value.trim().parse::<u32>().ok();
            }
        }
        if name.is_empty() && data.is_empty() {
            return Ok(Seen::Other);
        }
        if self.done {
            return Err(format!("an event after the last one: {text:?}"));
        }
        match self.api {
            Api::Ours => self.our_event(id, name, data),
            Api::OpenAi => Ok(self.openai_event(data)),
        }
    }

    fn our_event(&mut self, id: Option<u32>, name: &str, data: &str) -> Result<Seen, String> {
        if id != Some(self.events) {
            return Err(format!("event {} has the id {id:?}", self.events));
        }
        self.events += 1;
        match name {
            "started" if self.events == 1 => Ok(Seen::Other),
            _ if self.events == 1 => Err(format!("the stream begins with {name:?}")),
            "token" => {
                let index = number_after(data, "\"i\":").ok_or("a token without its index")?;
                if index != self.tokens {
                    return Err(format!("token {} has the index {index}", self.tokens));
                }
                self.tokens += 1;
                Ok(Seen::Token)
            }
            "metrics" if self.tokens > 0 => Ok(Seen::Other),
            "end" => {
                self.done = true;
                let tokens = number_after(data, "\"tokens_out\":");
                if tokens.is_some_and(|count| count != self.tokens) {
                    return Err(format!("the end counts {tokens:?} tokens and {} came", self.tokens));
                }
                Ok(Seen::End { tokens })
            }
            "error" => {
                self.done = true;
                Ok(Seen::Error)
            }
            other => Err(format!("event {other:?} has no business here")),
        }
    }

    fn openai_event(&mut self, data: &str) -> Seen {
        if data == "[DONE]" {
            self.done = true;
            return if self.finished { Seen::End { tokens: self.reported } } else { Seen::Error };
        }
        if data.contains("\"error\"") {
            return Seen::Error;
        }
        self.reported = number_after(data, "\"completion_tokens\":").or(self.reported);
        self.finished |= data.contains("\"finish_reason\":\"");
        let says = |key: &str| data.find(key).is_some_and(|at| !data[at + key.len()..].starts_with('"'));
        if says("\"text\":\"") || says("\"content\":\"") {
            self.tokens += 1;
            return Seen::Token;
        }
        Seen::Other
    }
}

fn number_after(text: &str, key: &str) -> Option<u32> {
    // From the end: a token's own text may hold anything.
    let rest = text[text.rfind(key)? + key.len()..].trim_start();
    let len = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..len].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(api: Api, text: &str) -> Result<Vec<Seen>, String> {
        let mut whole = Vec::new();
        StreamCheck::new(api).feed(text.as_bytes(), |seen| whole.push(seen))?;
        for cut in 0..text.len() {
            let (mut pieces, mut check) = (Vec::new(), StreamCheck::new(api));
            check.feed(&text.as_bytes()[..cut], |seen| pieces.push(seen))?;
            check.feed(&text.as_bytes()[cut..], |seen| pieces.push(seen))?;
            assert_eq!(pieces, whole, "cut at {cut}");
        }
        Ok(whole)
    }

    const STARTED: &str = "id: 0\nevent: started\ndata: {}\n\n";

    fn token(id: u32, index: u32) -> String {
        format!("id: {id}\nevent: token\ndata: {{\"t\":\" \\\"i\\\":9\",\"i\":{index}}}\n\n")
    }

    #[test]
    fn a_whole_stream_is_counted() {
        let end = "id: 3\nevent: end\ndata: {\"tokens_out\":2}\n\n";
        let text = format!("{STARTED}{}: keep-alive\n\n{}{end}", token(1, 0), token(2, 1));
        let seen = check(Api::Ours, &text).unwrap();
        assert_eq!(seen, [Seen::Other, Seen::Token, Seen::Other, Seen::Token, Seen::End { tokens: Some(2) }]);
    }

    #[test]
    fn what_is_missing_doubled_or_out_of_order_is_noticed() {
        let end = |id: u32, n: u32| format!("id: {id}\nevent: end\ndata: {{\"tokens_out\":{n}}}\n\n");
        for text in [
            token(0, 0),
            format!("{STARTED}{}", token(2, 0)),
            format!("{STARTED}{}{}", token(1, 0), token(2, 0)),
            format!("{STARTED}{}{}", token(1, 0), token(2, 2)),
            format!("{STARTED}{}{}", token(1, 0), end(2, 2)),
            format!("{STARTED}{}{}{}", token(1, 0), end(2, 1), token(3, 1)),
        ] {
            assert!(check(Api::Ours, &text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_openai_stream_ends_with_a_reason_and_done() {
        let chunk = "data: {\"choices\":[{\"text\":\" a\",\"finish_reason\":null}]}\n\n";
        let last = "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}],\"usage\":{\"completion_tokens\":2}}\n\n";
        let seen = check(Api::OpenAi, &format!("{chunk}{chunk}{last}data: [DONE]\n\n")).unwrap();
        assert_eq!(seen, [Seen::Token, Seen::Token, Seen::Other, Seen::End { tokens: Some(2) }]);
        assert_eq!(check(Api::OpenAi, &format!("{chunk}data: [DONE]\n\n")).unwrap()[1], Seen::Error);
    }
}
