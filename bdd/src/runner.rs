//! Runs features, several files side by side, each file's scenarios one after the other.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cucumber::World as _;
use cucumber::writer::{self, Basic, Coloring, Ext as _, Stats as _};

use crate::harness::workspace_root;
use crate::steps::world::TestWorld;

/// Where the features are, beneath the workspace's root.
pub const FEATURES: &str = "bdd/tests/features";
/// The environment variable that names another file or folder.
pub const FEATURE_PATH: &str = "LLORCH_BDD_FEATURE_PATH";

/// How many files run side by side. Most of a scenario is waiting for a server, so a few more than there are cores.
const LANES_MAX: usize = 3;

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub scenarios_passed: usize,
    pub scenarios_failed: usize,
    /// Broken files and hooks count as well as failed, skipped and undefined steps.
    pub faults: usize,
    /// What went wrong, a few lines each.
    pub told: Vec<String>,
}

impl Tally {
    /// Nothing went wrong, and something was run at all.
    pub fn is_good(&self) -> bool {
        self.faults == 0 && self.scenarios_failed == 0 && self.scenarios_passed > 0
    }

    fn add(&mut self, other: &Self) {
        self.scenarios_passed += other.scenarios_passed;
        self.scenarios_failed += other.scenarios_failed;
        self.faults += other.faults;
        self.told.extend_from_slice(&other.told);
    }
}

/// The feature files at the path that the environment names, or all of them.
///
/// # Errors
///
/// When there is none.
pub fn chosen_features() -> Result<Vec<PathBuf>> {
    let path = std::env::var(FEATURE_PATH).unwrap_or_else(|_| FEATURES.to_owned());
    let path = if Path::new(&path).exists() { PathBuf::from(path) } else { workspace_root().join(path) };
    features_beneath(&path)
}

/// The feature files in a folder and its folders, or the one file that the path names.
///
/// # Errors
///
/// When there is none.
pub fn features_beneath(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(path, &mut files).with_context(|| format!("no features at {}", path.display()))?;
    ensure!(!files.is_empty(), "no features at {}", path.display());
    files.sort();
    Ok(files)
}

/// Runs the scenarios whose name holds `words` and prints each file's outcome when it is there.
pub fn run(files: &[PathBuf], words: &str) -> Tally {
    let started = Instant::now();
    let waiting = Mutex::new(files.iter().collect::<Vec<_>>());
    let total = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..LANES_MAX.min(files.len()) {
            scope.spawn(|| {
                while let Some(file) = next(&waiting) {
                    let tally = run_file(file, words);
                    total.lock().expect("no lane panics while it counts").add(&tally);
                }
            });
        }
    });
    // Lanes silence panics while they run and restore each other's silence; after them, nobody is silent.
    drop(std::panic::take_hook());
    let total = total.into_inner().expect("no lane panics while it counts");
    // A log that is cut short still has its end.
    total.told.iter().for_each(|told| println!("\n{told}"));
    println!(
        "\n{} files, {} scenarios passed, {} failed, {} faults, {:.1} s",
        files.len(),
        total.scenarios_passed,
        total.scenarios_failed,
        total.faults,
        started.elapsed().as_secs_f32()
    );
    total
}

fn next<'a>(waiting: &Mutex<Vec<&'a PathBuf>>) -> Option<&'a PathBuf> {
    waiting.lock().expect("no lane panics while it chooses").pop()
}

fn run_file(file: &Path, words: &str) -> Tally {
    let page = Page::default();
    let words = words.to_owned();
    let writer = Basic::new(page.clone(), Coloring::Never, writer::Verbosity::ShowWorld).summarized();
    let run = TestWorld::cucumber()
        .with_writer(writer)
        .with_default_cli()
        .fail_on_skipped()
        .max_concurrent_scenarios(1)
        .filter_run(file.to_owned(), move |_, _, scenario| scenario.name.contains(&words));
    let writer = futures::executor::block_on(run);
    let stats = writer.scenarios_stats();
    let tally = Tally {
        scenarios_passed: stats.passed,
        scenarios_failed: stats.failed + stats.skipped,
        faults: writer.failed_steps() + writer.skipped_steps() + writer.parsing_errors() + writer.hook_errors(),
        told: page.failures(),
    };
    if tally.faults > 0 || tally.scenarios_passed > 0 {
        page.print();
    }
    tally
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "feature") {
            collect(&path, files)?;
        }
    }
    Ok(())
}

/// One file's output, kept together until it is complete.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

/// Lines of a failed step that are told again at the end, and the longest of them in characters.
const TOLD_LINES: usize = 5;
const TOLD_CHARS: usize = 300;

impl Page {
    /// Each failed step with its feature, its scenario and why.
    fn failures(&self) -> Vec<String> {
        let bytes = self.0.lock().expect("nobody panics while writing here");
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let above = |at: usize, word: &str| lines[..at].iter().rev().find(|line| line.trim_start().starts_with(word));
        let told = lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with('✘'));
        let told = told.map(|(at, _)| {
            let head = ["Feature", "Scenario"].into_iter().filter_map(|word| above(at, word).copied());
            let rest = lines[at..].iter().take(TOLD_LINES).copied();
            let short = |line: &str| line.chars().take(TOLD_CHARS).collect::<String>();
            head.chain(rest).map(short).collect::<Vec<_>>().join("\n")
        });
        told.collect()
    }

    fn print(&self) {
        let bytes = self.0.lock().expect("nobody panics while writing here");
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let text = lines.map(|line| format!("{line}\n")).collect::<String>();
        print!("{text}");
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panics while writing here").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
