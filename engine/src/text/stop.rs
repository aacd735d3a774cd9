//! Stop strings: ends a text before the first of them, across any cut of the text into pieces.
//!
//! The automaton of Aho and Corasick (1975). Its depth after a text is the length of the longest end of the text that
//! could still become a stop string: exactly what must be held back.

/// Watches a text for stop strings.
///
/// The first stop string to be complete ends the text; of several that end together, the longest counts.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    /// The tree, its root first; nothing at all where there is no stop string.
    nodes: Vec<Node>,
    state: u32,
    /// The end of the text that could become a stop string, `nodes[state].depth` bytes; after a hit, the stop string.
    held: String,
    hit: bool,
}

#[derive(Clone, Debug, Default)]
struct Node {
    children: Vec<(u8, u32)>,
    /// The node of the longest proper end of this node's text that is in the tree, too.
    fallback: u32,
    depth: u32,
    /// Length of the longest stop string that ends here; 0: none does.
    stop_len: u32,
}

impl StopMatcher {
    /// A matcher for some stop strings; empty ones are left out. Without any it takes no memory.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> StopMatcher {
        let mut nodes = Vec::new();
        for stop in stops.iter().map(|s| s.as_ref().as_bytes()).filter(|s| !s.is_empty()) {
            if nodes.is_empty() {
                nodes.push(Node::default());
            }
            insert(&mut nodes, stop);
        }
        if nodes.is_empty() {
            return StopMatcher { nodes, state: 0, held: String::new(), hit: false };
        }
        link(&mut nodes);
        let longest = nodes.iter().map(|n| n.depth as usize).max().unwrap_or(0);
        // Room for a held-back beginning and the text of one token after it.
        StopMatcher { nodes, state: 0, held: String::with_capacity(2 * longest + 64), hit: false }
    }

    /// Takes the next piece of the text and appends to `out` what certainly stands before any stop string.
    ///
    /// True once a stop string is complete: `out` then has all text before it, and nothing more will come.
    pub fn push(&mut self, text: &str, out: &mut String) -> bool {
        if self.hit {
            return true;
        }
        if self.nodes.is_empty() {
            out.push_str(text);
            return false;
        }
        self.held.push_str(text);
        let first_new = self.held.len() - text.len();
        for index in first_new..self.held.len() {
            self.state = self.next(self.state, self.held.as_bytes()[index]);
            let stop_len = self.nodes[self.state as usize].stop_len as usize;
            if stop_len > 0 {
                out.push_str(&self.held[..index + 1 - stop_len]);
                self.held.truncate(index + 1);
                self.held.drain(..index + 1 - stop_len);
                self.hit = true;
                return true;
            }
        }
        let keep = self.nodes[self.state as usize].depth as usize;
        let release = self.held.len() - keep;
        out.push_str(&self.held[..release]);
        self.held.drain(..release);
        false
    }

    /// Ends the text: what was held back is no stop string after all.
    pub fn finish(&mut self, out: &mut String) {
        if !self.hit {
            out.push_str(&self.held);
            self.held.clear();
            self.state = 0;
        }
    }

    /// The stop string that has ended the text.
    pub fn matched(&self) -> Option<&str> {
        self.hit.then_some(&*self.held)
    }

    fn next(&self, state: u32, byte: u8) -> u32 {
        let mut state = state;
        loop {
            let node = &self.nodes[state as usize];
            if let Some((_, child)) = node.children.iter().find(|(b, _)| *b == byte) {
                return *child;
            }
            if state == 0 {
                return 0;
            }
            state = node.fallback;
        }
    }
}

fn insert(nodes: &mut Vec<Node>, stop: &[u8]) {
    let mut at = 0;
    for (index, byte) in stop.iter().enumerate() {
        let known = nodes[at].children.iter().find(|(b, _)| b == byte).map(|(_, child)| *child);
        at = match known {
            Some(child) => child as usize,
            None => {
                let child = nodes.len();
                nodes[at].children.push((*byte, child as u32));
                nodes.push(Node { depth: index as u32 + 1, ..Node::default() });
                child
            }
        };
    }
    nodes[at].stop_len = stop.len() as u32;
}

/// Sets the fallbacks, nearer nodes before farther ones.
fn link(nodes: &mut [Node]) {
    let mut queue = std::collections::VecDeque::from([0]);
    while let Some(at) = queue.pop_front() {
        for (byte, child) in nodes[at].children.clone() {
            let mut fallback = nodes[at].fallback as usize;
            let found = loop {
                let step = nodes[fallback].children.iter().find(|(b, c)| *b == byte && *c != child);
                match step {
                    Some((_, next)) => break *next,
                    None if fallback == 0 => break 0,
                    None => fallback = nodes[fallback].fallback as usize,
                }
            };
            let inherited = nodes[found as usize].stop_len;
            let node = &mut nodes[child as usize];
            node.fallback = found;
            if node.stop_len == 0 {
                node.stop_len = inherited;
            }
            queue.push_back(child as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Dice;

    #[test]
    fn the_stop_string_that_ended_the_text_is_named() {
        let mut matcher = StopMatcher::new(&["END", "ND", "xyz"]);
        let mut out = String::new();
        assert_eq!((matcher.push("go E", &mut out), matcher.matched()), (false, None));
        assert!(matcher.push("ND of it", &mut out));
        matcher.finish(&mut out);
        assert_eq!((out.as_str(), matcher.matched()), ("go ", Some("END")), "of those that end together the longest");
    }

    /// The text before the first stop string, and whether there is one. Byte by byte, the plainest way there is.
    fn naive<'a>(stops: &[String], text: &'a str) -> (&'a str, bool) {
        for end in 1..=text.len() {
            let hit = stops.iter().filter(|s| !s.is_empty() && text.as_bytes()[..end].ends_with(s.as_bytes()));
            if let Some(stop) = hit.max_by_key(|s| s.len()) {
                return (&text[..end - stop.len()], true);
            }
        }
        (text, false)
    }

    fn check(stops: &[String], pieces: &[&str], note: &str) {
        let mut matcher = StopMatcher::new(stops);
        let mut out = String::new();
        let mut seen = String::new();
        let mut hit = false;
        for piece in pieces {
            seen.push_str(piece);
            hit = matcher.push(piece, &mut out);
            let (before, stopped) = naive(stops, &seen);
            assert_eq!(hit, stopped, "{note}: {stops:?} in {pieces:?}");
            assert!(before.starts_with(&out), "{note}: {out:?} was released of {before:?}");
            if !hit {
                let could_become = |tail: &str| stops.iter().any(|s| s.len() > tail.len() && s.starts_with(tail));
                let tails = (0..=seen.len()).filter(|i| seen.is_char_boundary(*i)).map(|i| &seen[i..]);
                let held = tails.into_iter().find(|t| could_become(t)).map_or(0, str::len);
                assert_eq!(seen.len() - out.len(), held, "{note}: too much or too little held back of {seen:?}");
            } else {
                assert_eq!(out, before, "{note}");
                break;
            }
        }
        matcher.finish(&mut out);
        assert_eq!(out, naive(stops, &seen).0, "{note}: {stops:?} in {pieces:?}");
        assert_eq!(matcher.push("", &mut out), hit);
    }

    #[test]
    fn any_cut_stops_where_the_whole_text_stops() {
        let seed = Dice::fresh_seed();
        let mut dice = Dice::new(seed);
        let letters = ["a", "b", "é", "ab"];
        for _ in 0..20_000 {
            let mut word = |len: usize| (0..len).map(|_| letters[dice.below(letters.len())]).collect::<String>();
            let stops: Vec<String> = (0..3).map(|i| word(i + 1)).collect();
            let pieces: Vec<String> = (0..6).map(|i| word(i % 4)).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            check(&stops, &pieces, &format!("seed {seed}"));
        }
    }

    #[test]
    fn the_table_of_cases() {
        let cases: [(&[&str], &[&str]); 7] = [
            (&["</s>"], &["hello <", "/", "s", "> more"]),
            (&["abcd", "bc"], &["a", "b", "c", "d"]),
            (&["\n\n"], &["one\n", "two\n\n"]),
            (&["aab"], &["a", "a", "a", "b"]),
            (&["", "x"], &["yx"]),
            (&[], &["anything", " goes"]),
            (&["stop", "top"], &["s", "to", "p"]),
        ];
        for (stops, pieces) in cases {
            let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
            check(&stops, pieces, "table");
        }
    }

    #[test]
    fn after_a_hit_nothing_more_comes() {
        let mut matcher = StopMatcher::new(&["END"]);
        let mut out = String::new();
        assert!(matcher.push("one END two", &mut out));
        assert!(matcher.push(" three", &mut out));
        matcher.finish(&mut out);
        assert_eq!(out, "one ");
    }
}
