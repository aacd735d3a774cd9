//! Prometheus text 0.0.4, read back.

use std::collections::BTreeMap;

/// One line of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// A page of metrics: what each name is, and its samples.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub kinds: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

impl Page {
    /// Reads a page; a line that is not of the format is left out, and so missing.
    pub fn parse(text: &str) -> Self {
        let mut page = Self::default();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                page.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                page.samples.extend(sample(line));
            }
        }
        page
    }

    /// The samples of one name whose labels hold all of `labels`.
    pub fn with<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        let fits = |sample: &Sample| labels.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|have| have == v));
        self.samples.iter().filter(move |sample| sample.name == name && fits(sample))
    }

    /// Their sum; `None` when there is no such sample.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.with(name, labels).map(|sample| sample.value).reduce(|a, b| a + b)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let name_len = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_len);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The text up to the closing quote, unescaped, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_with_their_escapes() {
        let page = Page::parse("# TYPE a counter\na{x=\"1\",y=\"q\\\"}\\n\"} 2\na{x=\"2\"} 3.5\nb 7 1700000000\n");
        assert_eq!(page.kinds["a"], "counter");
        assert_eq!(page.sum("a", &[]), Some(5.5));
        assert_eq!(page.sum("a", &[("x", "2")]), Some(3.5));
        assert_eq!(page.sum("a", &[("x", "3")]), None);
        assert_eq!(page.samples[0].labels["y"], "q\"}\n");
        assert_eq!(page.sum("b", &[]), Some(7.0));
    }
}
