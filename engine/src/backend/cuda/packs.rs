//! The kernels that are part of this binary: one pack a target, made by `engine/kernels/build.py`, which describes it.

use std::io::Read;

use lzma_rust2::LzmaReader;

/// Code that can run on no device is refused by the driver; memory for the dictionary is what build.py asks for.
const MEMORY_KIB_MAX: u32 = 128 << 10;

macro_rules! packs {
    ($($target:literal)*) => {
        const PACKS: &[(&str, &[u8])] =
            &[$(($target, include_bytes!(concat!("../../../kernels/packs/", $target, ".lzma")))),*];
    };
}
packs!("sm_80" "sm_86" "sm_89" "sm_90" "sm_100" "sm_120" "compute_80");

/// The pack for a device: the newest code of its generation that is not newer than it, else PTX, which the driver compiles.
pub(super) fn target_for((major, minor): (u32, u32)) -> &'static str {
    let number = |target: &str| target.strip_prefix("sm_").and_then(|n| n.parse::<u32>().ok());
    let fits = |n: &u32| n / 10 == major && n % 10 <= minor;
    let best = PACKS.iter().filter_map(|(target, _)| Some((number(target).filter(fits)?, *target))).max();
    best.map_or("compute_80", |(_, target)| target)
}

/// Name and code of each source.
///
/// # Panics
///
/// When a pack is damaged, which the tests exclude.
pub(super) fn unpack(target: &str) -> Vec<(String, Vec<u8>)> {
    let (_, packed) = PACKS.iter().find(|(name, _)| *name == target).expect("a target that is packed");
    let mut bytes = Vec::new();
    let reader = LzmaReader::new_mem_limit(*packed, MEMORY_KIB_MAX, None);
    reader.and_then(|mut r| r.read_to_end(&mut bytes)).expect("the packs are sound");
    let mut rest = &bytes[..];
    let mut images = Vec::new();
    while !rest.is_empty() {
        let len = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four bytes")) as usize;
        let (name_len, code_len) = (len(0), len(4));
        let (name, after) = rest[8..].split_at(name_len);
        let (code, after) = after.split_at(code_len);
        images.push((String::from_utf8_lossy(name).into_owned(), code.to_vec()));
        rest = after;
    }
    images
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn a_device_gets_the_newest_code_of_its_generation_and_ptx_beyond() {
        for (capability, target) in [
            ((8, 0), "sm_80"),
            ((8, 6), "sm_86"),
            ((8, 7), "sm_86"),
            ((8, 9), "sm_89"),
            ((9, 0), "sm_90"),
            ((10, 0), "sm_100"),
            ((10, 3), "sm_100"),
            ((11, 0), "compute_80"),
            ((12, 0), "sm_120"),
            ((12, 1), "sm_120"),
            ((13, 0), "compute_80"),
        ] {
            assert_eq!(target_for(capability), target, "{capability:?}");
        }
    }

    /// So the packs are the code whose registers and spills the lock tells.
    #[test]
    fn every_pack_holds_the_code_of_the_lock() {
        let lock = include_str!("../../../kernels/kernels.lock");
        let mut found = 0;
        for (target, _) in PACKS {
            for (name, code) in unpack(target) {
                let sum: String = Sha256::digest(&code).iter().map(|b| format!("{b:02x}")).collect();
                let line = format!("code {name}.cu {target} bytes {} sha256 {sum}", code.len());
                assert!(lock.lines().any(|l| l == line), "{line}");
                // The driver looks for PTX's end.
                assert!(*target != "compute_80" || code.last() == Some(&0));
                found += 1;
            }
        }
        assert_eq!(found, lock.lines().filter(|l| l.starts_with("code ")).count());
    }
}
