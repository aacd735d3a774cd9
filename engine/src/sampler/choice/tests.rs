use super::*;
use crate::testing::Dice;
use crate::testing::choices::{choice, scores};

/// The module's rules, one after the other, over a sorted vocabulary.
fn by_the_book(scores: &[f32], choice: &Choice) -> u32 {
    let score = |token: u32| scores[token as usize];
    let number = |token: u32| if score(token).is_nan() { f32::NEG_INFINITY } else { score(token) };
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|a, b| number(*b).partial_cmp(&number(*a)).expect("numbers").then(a.cmp(b)));
    let largest = number(order[0]);
    if largest == f32::NEG_INFINITY {
        return 0;
    }
    if choice.temperature == 0.0 {
        return order[0];
    }
    let weight = |token: u32| u128::from(Scale::new(largest, choice.temperature).weight(number(token)));
    let sum = |tokens: &[u32]| tokens.iter().map(|t| weight(*t)).sum::<u128>();
    // The length of the shortest beginning whose sum is as it should be.
    let beginning = |tokens: &[u32], is_enough: &dyn Fn(u128) -> bool| {
        let sums = tokens.iter().scan(0, |sum, t| {
            *sum += weight(*t);
            Some(*sum)
        });
        1 + sums.into_iter().position(is_enough).expect("all of it is enough")
    };
    if choice.top_k > 0 {
        order.truncate(choice.top_k as usize);
    }
    if let Some(top_p) = choice.top_p {
        let wanted = u128::from(top_p) * sum(&order);
        order.truncate(beginning(&order, &|sum| sum << 64 >= wanted));
    }
    order.retain(|t| weight(*t) >= u128::from(choice.min_weight));
    order.sort_unstable();
    let drawn = (u128::from(bits(choice.seed, choice.position)) * sum(&order)) >> 64;
    order[beginning(&order, &|sum| sum > drawn) - 1]
}

#[test]
fn what_is_chosen_is_what_the_book_says() {
    let mut dice = Dice::new(1);
    let mut chosen = std::collections::HashSet::new();
    for round in 0..4000 {
        let len = [1, 2, 5, 127, 128, 129, 300, 700][dice.below(8)];
        let scores = scores(&mut dice, len);
        let choice = choice(&mut dice, len);
        let mut chooser = Chooser::new(len);
        let token = chooser.choose(&scores, &choice);
        assert_eq!(token, by_the_book(&scores, &choice), "round {round}: {choice:?} of {len}");
        chosen.insert(token);
    }
    assert!(chosen.len() > 200, "hardly anything else was chosen: {}", chosen.len());
}

/// Parts of weights are numbers of 32 bits in the middle of what is fast: here as the documentation has them.
#[test]
fn weights_are_powers_of_e_in_forty_bits() {
    let weight = |score, largest, temperature| Scale::new(largest, temperature).weight(score);
    for step in 0..40_000 {
        let score = step as f32 * -0.00077 + 3.0;
        for temperature in [0.25f32, 1.0, 3.0] {
            let found = weight(score, 3.0, temperature);
            let x = (score - 3.0) * (1.0 / temperature);
            assert_eq!(found, (f64::from(exp(x)) * ONE as f64).round_ties_even() as u64, "{x}");
            let wanted = f64::from(x).exp() * ONE as f64;
            assert!((found as f64 - wanted).abs() <= 3e-7 * wanted + 0.5, "{x}: {found} and not {wanted}");
        }
    }
    let least_temperature = f32::from_bits(1);
    assert_eq!(weight(5.0, 5.0, least_temperature), ONE);
    assert_eq!(weight(4.9, 5.0, least_temperature), 0);
    assert!(weight(f32::MIN, 5.0, f32::MAX).abs_diff(weight(-1.0, 0.0, 1.0)) < 1 << 20, "one temperature apart");
    assert_eq!(weight(f32::NEG_INFINITY, 5.0, 1e30), 0);
    assert_eq!(weight(f32::NAN, 5.0, 1.0), 0);
    assert_eq!(weight(f32::INFINITY, f32::INFINITY, 1.0), ONE);
    assert_eq!(weight(5.0, f32::INFINITY, 1.0), 0);
}

#[test]
fn filters_that_leave_one_leave_the_best() {
    let mut dice = Dice::new(2);
    let mut chooser = Chooser::new(1000);
    for seed in 0..300 {
        let scores = scores(&mut dice, 1000);
        let plain = Choice { temperature: 0.0, top_k: 0, top_p: None, min_weight: 0, seed, position: 9 };
        let greedy = chooser.choose(&scores, &plain);
        let hot = Choice { temperature: 2.0, ..plain };
        assert_eq!(chooser.choose(&scores, &Choice { top_k: 1, ..hot }), greedy);
        assert_eq!(chooser.choose(&scores, &Choice { top_p: Some(0), ..hot }), greedy);
        assert_eq!(chooser.choose(&scores, &Choice { top_p: Some(0), min_weight: ONE, top_k: 7, ..hot }), greedy);
    }
    // Of equals min-p and a temperature near zero leave all.
    let equal =
        |choice: Choice| (0..200).map(|seed| Chooser::new(3).choose(&[7.0; 3], &Choice { seed, ..choice })).sum();
    let plain = Choice { temperature: 1.0, top_k: 0, top_p: None, min_weight: ONE, seed: 0, position: 0 };
    let (strict, cold): (u32, u32) = (equal(plain), equal(Choice { temperature: f32::from_bits(1), ..plain }));
    assert!((150..250).contains(&strict) && strict == cold, "{strict} {cold}");
}

#[test]
fn parameters_become_whole_numbers() {
    let params = |top_p, min_p| SamplingParams { temperature: 1.0, top_p, min_p, ..SamplingParams::default() };
    let of = |top_p, min_p| Choice::new(&params(top_p, min_p), 3);
    assert_eq!(of(1.0, 0.0), Choice { temperature: 1.0, top_k: 0, top_p: None, min_weight: 0, seed: 0, position: 3 });
    assert_eq!((of(0.5, 1.0).top_p, of(0.5, 1.0).min_weight), (Some(1 << 63), ONE));
    assert_eq!((of(7.5, 1e-30).top_p, of(0.0, 1e-30).min_weight), (None, 1));
    assert_eq!(of(1.0f32.next_down(), 0.5).top_p, Some(u64::MAX - (1 << 40) + 1));
    assert_eq!(top_p_goal(0, 100), 1);
    assert_eq!(top_p_goal(1 << 63, 100), 50);
    assert_eq!(top_p_goal((1 << 63) + 1, 100), 51);
    assert_eq!(top_p_goal(u64::MAX, 1 << 62), 1 << 62);
}
