//! `pull`: loads a model from a hub into the cache that other tools use, too.
//!
//! The network client is behind the feature `pull`: a server has no need of one, and what is not there cannot be misused.

#[cfg(feature = "pull")]
mod bar;
#[cfg(feature = "pull")]
mod hub;
#[cfg(feature = "pull")]
mod load;
#[cfg(feature = "pull")]
mod wanted;

use clap::{Arg, ArgMatches, Command};

use super::{Failure, model, settings};
use crate::config::{Config, is_repository};

pub fn command() -> Command {
    let command = Command::new("pull")
        .about("Load a model from a hub into the local cache, and print where it lies")
        .after_help(
            "Needs a build with the feature pull, and pull_allow, which says which repositories may be loaded. A load that was \
             interrupted goes on where it was; what came is held against the hub's digest. HF_TOKEN is sent to the hub where it \
             is set; SSL_CERT_FILE names certificates to trust in place of the built-in ones. Exit codes: 0 loaded, or there \
             already; 1 not loaded; 2 the command line is wrong.",
        )
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .required(true)
                .help("hf:org/repo, or hf:org/repo/FILE for one file; @REVISION may follow the repository"),
        );
    model::with_json(settings::with_settings(command), "print {\"path\", \"revision\", \"files\"} instead of the path")
}

/// What is to be loaded.
#[derive(Debug, PartialEq)]
#[cfg_attr(not(feature = "pull"), allow(dead_code))]
struct Name {
    repository: String,
    revision: String,
    file: Option<String>,
}

impl Name {
    fn read(text: &str) -> Result<Name, Failure> {
        let wrong = || {
            Failure::Misused(format!(
                "{text:?} is no name of a model: give hf:org/repo or hf:org/repo/FILE, with @REVISION after the repository \
                 if it is not main"
            ))
        };
        let rest = text.strip_prefix("hf:").ok_or_else(wrong)?;
        let mut parts = rest.splitn(3, '/');
        let (owner, mut name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let mut revision = "main";
        if let Some((before, after)) = name.split_once('@') {
            (name, revision) = (before, after);
        }
        let repository = format!("{owner}/{name}");
        let file = parts.next();
        let legal_revision = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let is_legal = is_repository(&repository)
            && (1..=128).contains(&revision.len())
            && revision.bytes().all(legal_revision)
            && !revision.starts_with('.')
            && file.is_none_or(is_inside);
        if !is_legal {
            return Err(wrong());
        }
        Ok(Name { repository, revision: revision.to_owned(), file: file.map(str::to_owned) })
    }
}

/// Whether a path stays in the folder that it is appended to. The hub names files, and is not to be trusted with more.
fn is_inside(path: &str) -> bool {
    let legal = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', ':']);
    path.len() <= 512 && path.split('/').all(legal)
}

pub fn run(arguments: &ArgMatches) -> Result<(), Failure> {
    let name = Name::read(arguments.get_one::<String>("name").expect("it is required"))?;
    let config = settings::load(arguments).map_err(Failure::failed)?.config;
    if !config.pull_allow.allow(&name.repository) {
        let repository = &name.repository;
        return Err(Failure::Failed(format!(
            "{repository} may not be loaded: the setting pull_allow does not name it; pull_allow = \"{repository}\" in the \
             configuration (or ORCH_PULL_ALLOW={repository}) allows it"
        )));
    }
    load(&name, &config, arguments.get_flag("json"))
}

#[cfg(feature = "pull")]
fn load(name: &Name, config: &Config, as_json: bool) -> Result<(), Failure> {
    load::run(name, config, as_json)
}

#[cfg(not(feature = "pull"))]
fn load(name: &Name, config: &Config, _: bool) -> Result<(), Failure> {
    let page = format!("{}/{}", config.pull_endpoint.trim_end_matches('/'), name.repository);
    Err(Failure::Failed(format!(
        "this build has no network client: build it with `cargo build --release --features pull`, or load {page} by other \
         means and name it with --model"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_paths_that_leave_the_folder_are_none() {
        let read = |text: &str| Name::read(text).ok().map(|n| (n.repository, n.revision, n.file));
        let name = |r: &str, v: &str, f: Option<&str>| Some((r.to_owned(), v.to_owned(), f.map(str::to_owned)));
        assert_eq!(read("hf:org/repo"), name("org/repo", "main", None));
        assert_eq!(read("hf:org/repo/a/b.gguf"), name("org/repo", "main", Some("a/b.gguf")));
        assert_eq!(read("hf:org/repo@v1.0/b.gguf"), name("org/repo", "v1.0", Some("b.gguf")));
        for wrong in [
            "org/repo",
            "hf:repo",
            "hf:org/",
            "hf:../etc",
            "hf:org/re po",
            "hf:org/repo/../x",
            "hf:org/repo//x",
            "hf:org/repo@/x",
            "hf:org/repo@../x",
            "hf:org/repo/",
            "hf:org/repo/a\\b",
        ] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }
}
