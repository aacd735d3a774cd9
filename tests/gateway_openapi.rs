//! The gateway's document against the server: the same routes, and answers that are what it says.

mod common;

use std::collections::BTreeSet;

use common::gateway::*;
use common::gateway_contract::{check_answer, complaint, document, follow, paths};
use common::*;
use serde_json::json;

#[test]
fn the_document_has_the_servers_routes_and_no_other() {
    let source = include_str!("../src/gateway/routes.rs");
    let table = source.split("const ROUTES").nth(1).and_then(|rest| rest.split("];").next()).expect("the table");
    let served: BTreeSet<(String, String)> = table
        .lines()
        .filter_map(|line| {
            let mut words = line.split('"').skip(1).step_by(2);
            let (method, path) = (words.next()?, words.next()?);
            Some((method.to_owned(), path.replace(":id", "{id}").replace('*', "{id}")))
        })
        .collect();
    let documented: BTreeSet<(String, String)> = paths()
        .flat_map(|(path, item)| {
            let methods = follow(item).as_object().expect("methods").keys();
            methods.map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    assert!(served.len() > 20, "{served:?}");
    assert_eq!(served, documented);
}

#[test]
fn answers_to_every_get_are_what_the_document_says() {
    let (_server, gateway) = with_gateway(Settings::default());
    for path in [
        "/v1/models",
        "/v1/models/wren",
        "/v1/models/org/other",
        "/v1/responses/resp_1",
        "/api/status",
        "/health",
        "/health/live",
        "/healthz",
        "/livez",
        "/health/ready",
        "/readyz",
        "/metrics",
        "/",
    ] {
        let answer = gateway.send(&Request::get(path)).expect("an answer");
        check_answer("GET", path, answer.status, &answer.body);
    }
    let nobody = gateway.without_key().send(&Request::get("/v1/models")).expect("an answer");
    check_answer("GET", "/v1/models", nobody.status, &nobody.body);
}

#[test]
fn the_judge_sees_what_is_missing_and_what_is_too_much() {
    let schema = &document()["components"]["schemas"]["Usage"];
    let usage = json!({"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1});
    assert_eq!(complaint(schema, &usage), None);
    let mut more = usage.clone();
    more["colour"] = json!("red");
    let mut less = usage.clone();
    less.as_object_mut().expect("an object").remove("total_tokens");
    for (wrong, says) in [(more, "colour"), (less, "total_tokens")] {
        assert!(complaint(schema, &wrong).expect("a complaint").contains(says), "{wrong}");
    }
}
