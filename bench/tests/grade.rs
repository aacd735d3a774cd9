//! The live grader, small: that every client has its outcome, and that what is promised is no guess. The figures come from
//! `cargo run --release -p orchestratord-bench -- grade`.

use orchestratord_bench::grade::{self, Options};

fn small() -> Options {
    Options { tasks: 150, seed: 7, ..Options::default() }
}

#[test]
fn every_promise_of_a_live_server_has_its_outcome() {
    let grades = grade::predictions(&small()).expect("the server answers");
    let chances = &grades.at_admission;
    assert_eq!((grades.offered, chances.total()), (135, 135), "the first tenth is not graded");
    // With so few, on a machine that does other things as well, only what is plainly wrong shows.
    assert!(chances.error() < 0.35, "{}", chances.error());
}

#[test]
fn who_comes_back_to_a_live_server_when_told_to_mostly_gets_in() {
    let grades = grade::retries(&small()).expect("the server answers");
    assert!(grades.told_to_retry > 10, "{}", grades.told_to_retry);
    assert!(2 * grades.admitted_at_first_retry > grades.told_to_retry, "{grades:?}");
}
