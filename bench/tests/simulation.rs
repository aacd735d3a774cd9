//! The simulator as CI runs it: a few seeds, and the least that the promises have to be worth.
//! `cargo run --release -p orchestratord-bench --bin simulate` runs all of it.

use orchestratord_bench::sim::{Kind, suite};

/// Queue orders, policies, budgets and memory differ by seed; each world panics at the first thing that does not hold.
#[test]
fn whatever_goes_wrong_nothing_is_lost_and_everything_adds_up() {
    for seed in 0..12 {
        let rounds = suite::chaos(seed, 500);
        assert!(rounds > 100, "seed {seed} did nothing");
    }
}

#[test]
fn a_probability_is_what_it_says() {
    let grades = suite::calibration(Kind::Bursts, 7, 4000);
    let chances = &grades.at_admission;
    assert!(chances.total() > 2500);
    assert!(chances.error() <= 0.08 && chances.skill() > 0.3, "{} {}", chances.error(), chances.skill());
}

#[test]
fn a_start_is_when_it_was_said_to_be() {
    let starts = suite::calibration(Kind::Diurnal, 7, 4000).starts;
    assert!(starts.pairs.len() > 500);
    let (error, within) = (starts.error_median(), starts.share_within_quarter());
    assert!(error <= 0.25 && within >= 0.7, "{error} {within}");
}

/// Both headers, each obeyed to the millisecond, at twice what the engine can do.
#[test]
fn who_comes_back_when_told_to_gets_in() {
    for in_seconds in [false, true] {
        let grades = suite::retry(Kind::Poisson, 7, 6000, in_seconds);
        assert!(grades.told_to_retry > 3000, "{}", grades.told_to_retry);
        let share = grades.admitted_at_first_retry as f64 / grades.told_to_retry as f64;
        assert!(share >= 0.8, "{share} with whole seconds {in_seconds}");
    }
}

#[test]
fn running_streams_hardly_notice_a_long_prompt() {
    let gaps = suite::gaps(7, 0.0);
    assert!(gaps.with_us <= 2.1 * gaps.without_us, "{gaps:?}");
}

/// Batch work waits for whatever interactive work comes meanwhile, until its age gives it a slot of its own.
#[test]
fn batch_work_starts_when_it_was_said_to_where_it_has_the_time() {
    let starts = suite::starts(Kind::Poisson, 7, 15_000).starts_batch;
    assert!(starts.pairs.len() > 1000, "{}", starts.pairs.len());
    let (error, within) = (starts.error_median(), starts.share_within_quarter());
    assert!(error <= 0.25 && within >= 0.7, "{error} {within}");
}
