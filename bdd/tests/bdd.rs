//! The features themselves: every sentence means exactly one thing, and everything they say is so.

use anyhow::{Context, Result, bail, ensure};
use cucumber::World as _;
use cucumber::codegen::{Regex, StepConstructor, WorldInventory, inventory};
use cucumber::feature::Ext as _;
use cucumber::gherkin::{Feature, GherkinEnv, Scenario};
use cucumber::step::Collection;
use orchestratord_bdd::harness::{Scratch, workspace_root};
use orchestratord_bdd::runner;
use orchestratord_bdd::steps::world::TestWorld;

/// Holds every step of a feature against the registry and gives the number of steps.
fn check_steps(feature: Feature, registry: &Collection<TestWorld>) -> Result<usize> {
    let feature = feature.expand_examples()?;
    let mut step_count = 0;
    let background = |background: &Option<cucumber::gherkin::Background>| {
        background.iter().flat_map(|background| background.steps.clone()).collect::<Vec<_>>()
    };
    let ruled = feature.rules.iter().flat_map(|rule| rule.scenarios.iter());
    let scenarios: Vec<&Scenario> = feature.scenarios.iter().chain(ruled).collect();
    ensure!(!scenarios.is_empty(), "the feature {:?} has no scenario", feature.name);
    let shared = background(&feature.background).into_iter();
    let ruled = feature.rules.iter().flat_map(|rule| background(&rule.background));
    for step in shared.chain(ruled).chain(scenarios.iter().flat_map(|scenario| scenario.steps.clone())) {
        match registry.find(&step) {
            Ok(Some(_)) => step_count += 1,
            Ok(None) => bail!("{:?}: undefined: {} {}", feature.name, step.keyword, step.value),
            Err(ambiguous) => bail!("{:?}: ambiguous: {} {}: {ambiguous}", feature.name, step.keyword, step.value),
        }
    }
    Ok(step_count)
}

mod tests {
    use super::*;

    fn parse(text: &str) -> Feature {
        Feature::parse(text, GherkinEnv::default()).expect("the feature is well formed")
    }

    fn patterns<S: inventory::Collect + StepConstructor<TestWorld>>() -> Vec<Regex> {
        inventory::iter::<S>.into_iter().map(|step| (step.inner().1)()).collect()
    }

    #[test]
    fn features_have_no_undefined_or_ambiguous_steps() -> Result<()> {
        let registry = TestWorld::collection();
        for file in runner::features_beneath(&workspace_root().join(runner::FEATURES))? {
            let feature = Feature::parse_path(&file, GherkinEnv::default());
            let feature = feature.with_context(|| format!("{} does not parse", file.display()))?;
            let step_count = check_steps(feature, &registry).with_context(|| file.display().to_string())?;
            ensure!(step_count > 0, "{} has no steps", file.display());
        }
        Ok(())
    }

    #[test]
    fn an_undefined_step_is_found() {
        let feature = "Feature: F\n  Scenario: S\n    Given a server\n    When I whistle\n";
        let error = check_steps(parse(feature), &TestWorld::collection()).expect_err("nobody can whistle");
        assert!(error.to_string().contains("undefined") && error.to_string().contains("I whistle"));
    }

    #[test]
    fn an_undefined_step_of_an_outline_or_a_background_is_found() {
        let outline = "Feature: F\n  Scenario Outline: S\n    Given <what>\n    Examples:\n      | what |\n      | a server |\n      | a sieve |\n";
        assert!(check_steps(parse(outline), &TestWorld::collection()).is_err());
        let background = "Feature: F\n  Background:\n    Given a sieve\n  Scenario: S\n    Given a server\n";
        assert!(check_steps(parse(background), &TestWorld::collection()).is_err());
    }

    #[test]
    fn an_ambiguous_step_is_found() {
        let step = |regex: &str, registry: Collection<TestWorld>| {
            let regex = Regex::new(regex).expect("the expression is well formed");
            registry.given(None, regex, |_, _| Box::pin(async {}))
        };
        let registry = step("^a (.*)$", step("^a server$", Collection::new()));
        let error = check_steps(parse("Feature: F\n  Scenario: S\n    Given a server\n"), &registry);
        assert!(error.expect_err("both match").to_string().contains("ambiguous"));
    }

    #[test]
    fn every_step_of_the_registry_is_used_by_a_feature() -> Result<()> {
        let mut text = String::new();
        for file in runner::features_beneath(&workspace_root().join(runner::FEATURES))? {
            let feature = Feature::parse_path(&file, GherkinEnv::default())?.expand_examples()?;
            let background = feature.background.iter().flat_map(|background| background.steps.iter());
            for step in background.chain(feature.scenarios.iter().flat_map(|scenario| scenario.steps.iter())) {
                text.push_str(&step.value);
                text.push('\n');
            }
        }
        let registered = [
            patterns::<<TestWorld as WorldInventory>::Given>(),
            patterns::<<TestWorld as WorldInventory>::When>(),
            patterns::<<TestWorld as WorldInventory>::Then>(),
        ];
        for pattern in registered.into_iter().flatten() {
            ensure!(text.lines().any(|line| pattern.is_match(line)), "no feature says {pattern}");
        }
        Ok(())
    }

    #[test]
    fn a_run_with_an_undefined_step_and_a_run_of_nothing_have_failed() -> Result<()> {
        let folder = Scratch::new()?;
        let file = folder.path().join("whistle.feature");
        std::fs::write(&file, "Feature: F\n  Scenario: S\n    Given a server\n    When I whistle\n")?;
        let tally = runner::run(std::slice::from_ref(&file), "");
        assert!(!tally.is_good());
        assert!(
            matches!(&tally.told[..], [told] if told.contains("Scenario: S") && told.contains("I whistle")),
            "{tally:?}"
        );
        std::fs::write(&file, "Feature: F\n  Scenario: S\n    Given a server\n")?;
        assert!(runner::run(std::slice::from_ref(&file), "").is_good());
        assert!(!runner::run(&[file], "a scenario that is not there").is_good());
        Ok(())
    }

    #[test]
    fn all_features_pass_against_a_live_server() -> Result<(), Plain> {
        let features = runner::chosen_features().map_err(|error| Plain(format!("{error:#}")))?;
        let tally = runner::run(&features, "");
        if tally.is_good() { Ok(()) } else { Err(Plain(tally.told.join("\n\n"))) }
    }

    /// Shown as it is: no backtrace says more than the steps.
    struct Plain(String);

    impl std::fmt::Debug for Plain {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "these steps failed:\n{}", self.0)
        }
    }
}
