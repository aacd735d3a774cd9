//! Files into the cache: blobs by their digest, and a folder for each commit that links to them.
//!
//! The layout, the names of unfinished files and the locks are those of Hugging Face's own tools, so that both find what the
//! other has loaded, and neither disturbs the other.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hf_hub::{Cache, Repo, RepoType};
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::Name;
use super::bar::Bar;
use super::hub::{Facts, Hub, HubError};
use super::wanted::wanted;
use crate::cli::Failure;
use crate::cli::progress::bytes;
use crate::config::Config;

/// Tries in a row that bring nothing before a load is given up; between them it waits, twice as long each time.
const TRIES_MAX: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Bytes that are read at once.
const PIECE_LEN: usize = 1 << 18;

/// One repository in the cache.
struct Shelf {
    folder: PathBuf,
    snapshot: PathBuf,
    locks: PathBuf,
}

/// A file that is there now.
struct Loaded {
    name: String,
    len: u64,
    digest: String,
    was_there: bool,
}

pub fn run(name: &Name, config: &Config, as_json: bool) -> Result<(), Failure> {
    let hub = Hub::new(&config.pull_endpoint)?;
    let cache = Cache::new(cache_folder(config)?);
    let repo = Repo::with_revision(name.repository.clone(), RepoType::Model, name.revision.clone());
    let listing = patiently(|| hub.list(&name.repository, &name.revision))?;
    let files = wanted(&listing.files, name.file.as_deref(), &name.repository)?;
    let locks = cache.path().join(".locks").join(repo.folder_name());
    let folder = cache.path().join(repo.folder_name());
    let entry = cache.repo(repo);
    let shelf = Shelf { folder, snapshot: entry.pointer_path(&listing.commit), locks };
    let mut loaded = Vec::new();
    for file in &files {
        loaded.push(shelf.load(&hub, &name.repository, &listing.commit, file)?);
    }
    if name.revision != listing.commit {
        entry.create_ref(&listing.commit).map_err(|e| Failure::Failed(format!("{}: {e}", shelf.folder.display())))?;
    }
    let path = match &files[..] {
        [only] => shelf.snapshot.join(only),
        _ => shelf.snapshot.clone(),
    };
    say(&path, &listing.commit, &loaded, as_json)
}

fn say(path: &Path, commit: &str, loaded: &[Loaded], as_json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = match as_json {
        false => writeln!(out, "{}", path.display()),
        true => {
            let file =
                |f: &Loaded| json!({"name": f.name, "bytes": f.len, "digest": f.digest, "was_there": f.was_there});
            let files: Vec<_> = loaded.iter().map(file).collect();
            writeln!(out, "{}", json!({"path": path.display().to_string(), "revision": commit, "files": files}))
        }
    };
    written.map_err(Failure::output)
}

fn cache_folder(config: &Config) -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || Some(variable("HOME")?.join(".cache/huggingface/hub"));
    let configured = config.pull_cache.clone().or_else(|| variable("HF_HUB_CACHE"));
    configured
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(home)
        .ok_or_else(|| Failure::Failed("there is no HOME to load into: set pull_cache".to_owned()))
}

/// Tries again where the failure may pass.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, HubError>) -> Result<T, Failure> {
    let mut wait = FIRST_WAIT;
    for _ in 1..TRIES_MAX {
        match attempt() {
            Err(HubError::Passing(_)) => std::thread::sleep(wait),
            other => return other.map_err(Failure::from),
        }
        wait *= 2;
    }
    attempt().map_err(Failure::from)
}

impl Shelf {
    fn load(&self, hub: &Hub, repository: &str, commit: &str, file: &str) -> Result<Loaded, Failure> {
        let facts = patiently(|| hub.facts(repository, commit, file))?;
        let blobs = self.folder.join("blobs");
        let blob = blobs.join(&facts.digest);
        make_folder(&blobs)?;
        make_folder(&self.locks)?;
        let _lock = lock(&self.locks.join(format!("{}.lock", facts.digest)), file)?;
        let was_there = fs::metadata(&blob).is_ok_and(|m| m.len() == facts.len);
        if !was_there {
            let unfinished = blobs.join(format!("{}.incomplete", facts.digest));
            Load { hub, repository, commit, file, facts: &facts }.complete(&unfinished)?;
            fs::rename(&unfinished, &blob).map_err(|e| at(&blob, e))?;
        }
        link(&blob, &self.snapshot.join(file), file)?;
        Ok(Loaded { name: file.to_owned(), len: facts.len, digest: facts.digest, was_there })
    }
}

/// One file on its way.
struct Load<'a> {
    hub: &'a Hub,
    repository: &'a str,
    commit: &'a str,
    file: &'a str,
    facts: &'a Facts,
}

impl Load<'_> {
    /// Loads the rest of the file behind what is there of it.
    fn complete(&self, path: &Path) -> Result<(), Failure> {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut out = open.map_err(|e| at(path, e))?;
        let (mut hash, mut len) = (Hash::of(self.facts), 0);
        let mut piece = vec![0; PIECE_LEN];
        // What is there already belongs to the digest, too.
        while len < self.facts.len {
            match out.read(&mut piece).map_err(|e| at(path, e))? {
                0 => break,
                n => {
                    hash.update(&piece[..n]);
                    len += n as u64;
                }
            }
        }
        // Longer than it may be: it is of something else.
        if out.metadata().map_err(|e| at(path, e))?.len() > self.facts.len {
            (hash, len) = (Hash::of(self.facts), 0);
        }
        let mut bar = Bar::new(self.file, self.facts.len, len, Instant::now());
        let (mut tries, mut wait) = (0, FIRST_WAIT);
        while len < self.facts.len {
            let before = len;
            let error = match self.part(&mut out, path, &mut hash, &mut len, &mut piece, &mut bar) {
                Ok(()) => continue,
                Err(Stop::Hub(HubError::Passing(error))) => error,
                Err(Stop::Hub(lasting)) => return Err(lasting.into()),
                Err(Stop::Disk(failure)) => return Err(failure),
            };
            if len > before {
                (tries, wait) = (0, FIRST_WAIT);
            }
            tries += 1;
            if tries == TRIES_MAX {
                let done = format!(
                    "{} of {} are there, and the next pull goes on from them",
                    bytes(len),
                    bytes(self.facts.len)
                );
                return Err(Failure::Failed(format!("{error}; {done}")));
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
        out.sync_all().map_err(|e| at(path, e))?;
        let found = hash.hex();
        if found != self.facts.digest {
            // Of no use, and it would be gone on from.
            let _ = fs::remove_file(path);
            return Err(Failure::Failed(format!(
                "{}: what came has the digest {found}, and the hub says {}: it was thrown away; try again",
                self.file, self.facts.digest
            )));
        }
        bar.end(&format!("{}, digest {found}", bytes(len)));
        Ok(())
    }

    /// What one connection brings.
    fn part(
        &self,
        out: &mut File,
        path: &Path,
        hash: &mut Hash,
        len: &mut u64,
        piece: &mut [u8],
        bar: &mut Bar,
    ) -> Result<(), Stop> {
        let (mut body, goes_on) = self.hub.read(self.repository, self.commit, self.file, *len).map_err(Stop::Hub)?;
        if !goes_on {
            (*hash, *len) = (Hash::of(self.facts), 0);
        }
        let disk = |e| Stop::Disk(at(path, e));
        out.seek(SeekFrom::Start(*len)).and_then(|_| out.set_len(*len)).map_err(disk)?;
        while *len < self.facts.len {
            let most = piece.len().min((self.facts.len - *len) as usize);
            match body.read(&mut piece[..most]) {
                Ok(0) => {
                    return Err(Stop::Hub(HubError::Passing(format!("{}: the connection ended early", self.file))));
                }
                Ok(n) => {
                    out.write_all(&piece[..n]).map_err(disk)?;
                    hash.update(&piece[..n]);
                    *len += n as u64;
                    bar.at(*len, Instant::now());
                }
                Err(error) => return Err(Stop::Hub(HubError::Passing(format!("{}: {error}", self.file)))),
            }
        }
        Ok(())
    }
}

enum Stop {
    Hub(HubError),
    Disk(Failure),
}

/// The digest that the hub names: SHA-256, or git's SHA-1 of a blob, which begins with its length.
enum Hash {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hash {
    fn of(facts: &Facts) -> Hash {
        match facts.digest.len() {
            64 => Hash::Sha256(Sha256::new()),
            _ => Hash::Git(Sha1::new_with_prefix(format!("blob {}\0", facts.len))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hash::Sha256(hash) => hash.update(bytes),
            Hash::Git(hash) => hash.update(bytes),
        }
    }

    fn hex(self) -> String {
        match self {
            Hash::Sha256(hash) => format!("{:x}", hash.finalize()),
            Hash::Git(hash) => format!("{:x}", hash.finalize()),
        }
    }
}

fn at(path: &Path, error: std::io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|e| at(path, e))
}

/// Two loads of one file would write over each other. Released when it is dropped, and by the kernel when the process ends.
fn lock(path: &Path, file: &str) -> Result<File, Failure> {
    let handle = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(|e| at(path, e))?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => {
            Err(Failure::Failed(format!("{file} is being loaded by another process: wait for it, or end it")))
        }
        Err(TryLockError::Error(error)) => Err(at(path, error)),
    }
}

/// A relative link, so that the cache may be moved.
fn link(blob: &Path, place: &Path, file: &str) -> Result<(), Failure> {
    if fs::canonicalize(place).ok() == fs::canonicalize(blob).ok() && place.exists() {
        return Ok(());
    }
    make_folder(place.parent().expect("it is in a folder"))?;
    let up = "../".repeat(file.matches('/').count() + 2);
    let target = format!("{up}blobs/{}", blob.file_name().unwrap_or_default().to_string_lossy());
    let _ = fs::remove_file(place);
    std::os::unix::fs::symlink(target, place).map_err(|e| at(place, e))
}
