//! `ci/metrics.lint.json` against a live server's `/metrics`: names, types, labels, bounds, and nothing besides.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use common::*;
use serde_json::{Map, Value, json};

fn rules() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/metrics.lint.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the lint rules")).expect("JSON")
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("an object")
}

fn texts(value: &Value) -> BTreeSet<&str> {
    value.as_array().expect("a list").iter().map(|v| v.as_str().expect("a text")).collect()
}

/// Every rule that a page breaks, in words.
fn lint(rules: &Value, page: &Page) -> Vec<String> {
    let mut broken = Vec::new();
    let known: BTreeMap<&String, &Value> = object(&rules["series"]).iter().chain(object(&rules["extra"])).collect();
    for (name, rule) in &known {
        broken.extend(lint_series(name, rule, page));
    }
    for name in page.kinds.keys().filter(|name| !known.contains_key(name)) {
        broken.push(format!("{name} is in no table"));
    }
    for sample in &page.samples {
        if !known.iter().any(|(name, rule)| parts(name, rule).contains(&sample.name)) {
            broken.push(format!("{} is in no table", sample.name));
        }
        for (label, value) in sample.labels.iter().filter(|(label, _)| *label != "le") {
            if let Some(legal) = rules["label_values"].get(label)
                && !texts(legal).contains(value.as_str())
            {
                broken.push(format!("{}: {label}={value:?}", sample.name));
            }
        }
    }
    broken.extend(lint_budgets(rules, page));
    broken
}

/// The names under which a series' samples stand.
fn parts(name: &str, rule: &Value) -> Vec<String> {
    match rule["type"].as_str() {
        Some("histogram") => ["_bucket", "_sum", "_count"].iter().map(|part| format!("{name}{part}")).collect(),
        _ => vec![name.to_owned()],
    }
}

fn lint_series(name: &str, rule: &Value, page: &Page) -> Vec<String> {
    let mut broken = Vec::new();
    if page.kinds.get(name).map(String::as_str) != rule["type"].as_str() {
        broken.push(format!("{name} is {:?}, not {}", page.kinds.get(name), rule["type"]));
    }
    for part in parts(name, rule) {
        let samples: Vec<_> = page.with(&part, &[]).collect();
        if samples.is_empty() {
            broken.push(format!("{part} is missing"));
        }
        for sample in samples {
            let labels: BTreeSet<&str> = sample.labels.keys().map(String::as_str).filter(|l| *l != "le").collect();
            if labels != texts(&rule["labels"]) {
                broken.push(format!("{part} has the labels {labels:?}"));
            }
            if !sample.value.is_finite() || sample.value < 0.0 {
                broken.push(format!("{part} is {}", sample.value));
            }
        }
    }
    if rule["type"] == "histogram" {
        broken.extend(lint_histogram(name, rule, page));
    }
    broken
}

/// A series' labels but for the bucket's bound.
type Labels<'a> = Vec<(&'a str, &'a str)>;

/// Bounds as the table has them and `+Inf`; counts that never fall and end at `_count`.
fn lint_histogram(name: &str, rule: &Value, page: &Page) -> Vec<String> {
    let mut broken = Vec::new();
    let mut bounds: Vec<String> = rule["buckets"].as_array().expect("bounds").iter().map(Value::to_string).collect();
    bounds.push("+Inf".to_owned());
    let mut by_labels: BTreeMap<Labels<'_>, Vec<(&str, f64)>> = BTreeMap::new();
    let bucket_name = format!("{name}_bucket");
    for sample in page.with(&bucket_name, &[]) {
        let labels = sample.labels.iter().filter(|(label, _)| *label != "le");
        let key = labels.map(|(label, value)| (label.as_str(), value.as_str())).collect();
        let bound = sample.labels.get("le").map_or("", String::as_str);
        by_labels.entry(key).or_default().push((bound, sample.value));
    }
    for (labels, buckets) in by_labels {
        let told: Vec<&str> = buckets.iter().map(|(bound, _)| *bound).collect();
        if told != bounds {
            broken.push(format!("{name} has the bounds {told:?}"));
        }
        if buckets.windows(2).any(|pair| pair[0].1 > pair[1].1) {
            broken.push(format!("{name} falls: {buckets:?}"));
        }
        let count = page.sum(&format!("{name}_count"), &labels);
        if count != buckets.last().map(|(_, value)| *value) {
            broken.push(format!("{name} counts {count:?} beside {buckets:?}"));
        }
    }
    broken
}

/// How many values a label has within one series: that is what a scraper pays for.
fn lint_budgets(rules: &Value, page: &Page) -> Vec<String> {
    let mut values: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for sample in &page.samples {
        for (label, value) in sample.labels.iter().filter(|(label, _)| *label != "le") {
            values.entry((&sample.name, label)).or_default().insert(value);
        }
    }
    let over = values.into_iter().filter_map(|((name, label), values)| match rules["label_budgets"][label].as_u64() {
        None => Some(format!("the label {label} of {name} has no budget")),
        Some(budget) if values.len() as u64 > budget => Some(format!("{name}: {label} has {} values", values.len())),
        Some(_) => None,
    });
    over.collect()
}

/// What promtool would say as well: help and type once each, before the samples, and no sample twice.
fn check_text(text: &str) {
    let mut lines = BTreeSet::new();
    let mut current = "";
    for line in text.lines() {
        let key = match line.strip_prefix("# ") {
            Some(comment) => comment.split(' ').take(2).collect::<Vec<_>>().join(" "),
            None => line.rsplit_once(' ').expect("a value").0.to_owned(),
        };
        assert!(lines.insert(key.clone()), "{key} stands there twice");
        match line.strip_prefix("# HELP ") {
            Some(help) => current = help.split(' ').next().expect("a name"),
            None if line.starts_with("# TYPE ") => {
                assert!(line.contains(&format!(" {current} ")), "{line} has no help")
            }
            None => assert!(line.starts_with(current), "{line} stands under {current}"),
        }
    }
    assert!(text.ends_with('\n'));
}

#[test]
fn the_first_scrape_has_every_series_and_obeys_the_lint() {
    let server = server();
    let answer = server.client_with(None).send(&Request::get("/metrics")).expect("an answer");
    assert_eq!(answer.status, 200);
    let kind = answer.header("Content-Type").expect("a content type");
    assert!(kind.starts_with(rules()["content_type"].as_str().expect("a text")), "{kind}");
    assert_correlated(&answer);
    check_text(&answer.text());
    let broken = lint(&rules(), &Page::parse(&answer.text()));
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_server_that_has_seen_everything_obeys_the_lint() {
    let server = server_with(narrow(1).with("admission_policy", "drop-lru"));
    run(&server, &task());
    let (running, stream) = occupy(&server);
    for _ in 0..3 {
        post(&server, "/v1/tasks", &task());
    }
    for refused in [
        json!({ "ctx": 0 }),
        json!({ "engine": "cuda" }),
        json!({ "deadline_ms": 0 }),
        json!({ "model_ref": "x\"y\\z\n" }),
    ] {
        assert!(post(&server, "/v1/tasks", &task_with(refused)).status >= 400);
    }
    cancel(&server, &running);
    finish(&stream);
    let path = format!("/v1/pools/{POOL}/reload");
    assert_eq!(post(&server, &path, &json!({ "new_model_ref": "missing" })).status, 409);
    assert_eq!(post(&server, &path, &json!({ "new_model_ref": "wren" })).status, 200);
    post(&server, &format!("/v1/pools/{POOL}/drain"), &json!({ "deadline_ms": 0 }));
    let text = get(&server, "/metrics").text();
    check_text(&text);
    let broken = lint(&rules(), &Page::parse(&text));
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn counters_and_histograms_follow_what_happens() {
    let server = server();
    let by_class = [("priority", "interactive")];
    let task = task_with(json!({ "max_tokens": 8, "ignore_end": true }));
    run(&server, &task);
    let page = scrape(&server);
    let sum = |name: &str, labels: &[(&str, &str)]| page.sum(name, labels).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(sum("tasks_enqueued_total", &by_class), 1.0);
    assert_eq!(sum("tasks_started_total", &by_class), 1.0);
    assert_eq!(sum("tasks_enqueued_total", &[("priority", "batch")]), 0.0);
    assert_eq!(sum("tokens_out_total", &[]), 8.0);
    assert!(sum("tokens_in_total", &[]) >= 2.0, "the prompt has some tokens");
    assert_eq!(sum("latency_first_token_ms_count", &by_class), 1.0);
    assert!(sum("latency_first_token_ms_sum", &by_class) > 0.0);
    assert_eq!(sum("latency_decode_ms_count", &by_class), 1.0);
    assert_eq!(sum("queue_depth", &[]), 0.0);
    assert!((0.0..=1.0).contains(&sum("kv_cache_usage_ratio", &[])));
    assert_eq!(sum("model_state", &[("model_id", "wren"), ("state", "ready")]), 1.0);
    assert_eq!(sum("model_state", &[("model_id", "wren")]), 1.0, "a model is in one state");

    let (running, stream) = occupy(&server);
    let while_running = metric(&server, "kv_cache_usage_ratio", &[]);
    assert!(while_running > 0.0, "a running sequence holds blocks");
    cancel(&server, &running);
    finish(&stream);
    assert_eq!(metric(&server, "tasks_canceled_total", &[("reason", "client")]), 1.0);
}

#[test]
fn the_lint_notices_what_it_is_for() {
    let rules = json!({
        "series": {
            "a_total": { "type": "counter", "labels": ["engine"] },
            "h_ms": { "type": "histogram", "labels": ["engine"], "buckets": [1, 2] },
        },
        "extra": {},
        "label_values": { "engine": ["cpu", "cuda"] },
        "label_budgets": { "engine": 2 },
    });
    let good = "# TYPE a_total counter\na_total{engine=\"cpu\"} 1\n# TYPE h_ms histogram\n\
        h_ms_bucket{engine=\"cpu\",le=\"1\"} 0\nh_ms_bucket{engine=\"cpu\",le=\"2\"} 1\n\
        h_ms_bucket{engine=\"cpu\",le=\"+Inf\"} 1\nh_ms_sum{engine=\"cpu\"} 1.5\nh_ms_count{engine=\"cpu\"} 1\n";
    assert_eq!(lint(&rules, &Page::parse(good)), Vec::<String>::new());
    for (from, to) in [
        ("a_total{engine=\"cpu\"} 1", ""),
        ("a_total counter", "a_total gauge"),
        ("a_total{engine=\"cpu\"}", "a_total{engine=\"tpu\"}"),
        ("a_total{engine=\"cpu\"}", "a_total{engine=\"cpu\",task=\"7\"}"),
        ("a_total{engine=\"cpu\"}", "a_total"),
        ("a_total{engine=\"cpu\"} 1", "a_total{engine=\"cpu\"} 1\nb_total 1"),
        ("le=\"2\"", "le=\"3\""),
        ("le=\"1\"} 0", "le=\"1\"} 2"),
        ("h_ms_count{engine=\"cpu\"} 1", "h_ms_count{engine=\"cpu\"} 2"),
        ("h_ms_sum{engine=\"cpu\"} 1.5\n", ""),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good, "{from} is not in the page");
        assert!(!lint(&rules, &Page::parse(&bad)).is_empty(), "{from} -> {to} was not noticed");
    }
}
