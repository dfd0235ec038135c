//! What aiter has compiled on this machine: modules, build folders, locks, and whether they fit the tree.
//!
//! aiter rebuilds a module only when its file is missing (in later versions, also when it lacks the architecture):
//! neither the tree's commit nor the sources nor a table are part of its check, so an outdated module is used
//! silently.

use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

/// A lock older than this is suspicious: the longest single module builds in well under an hour.
const LOCK_AGE: Duration = Duration::from_secs(3600);

/// The contents of the folder of compiled modules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Products {
    pub folder: Utf8PathBuf,
    /// Compiled modules (`module_….so`).
    pub modules: Vec<Utf8PathBuf>,
    /// Modules built before the present commit was checked out.
    pub other_revision: Vec<Utf8PathBuf>,
    /// Modules older than a source file.
    pub older_than_sources: Vec<Utf8PathBuf>,
    pub builds: Vec<Utf8PathBuf>,
    /// Locks that no live builder holds, or that are older than any build takes.
    pub stale_locks: Vec<Utf8PathBuf>,
}

/// The folder in which aiter stores its modules: `AITER_JIT_DIR`, else `aiter/jit` if writable, else `~/.aiter/jit`.
pub fn folder(package: &Utf8Path, variable: impl Fn(&str) -> Option<String>) -> Utf8PathBuf {
    if let Some(folder) = variable("AITER_JIT_DIR").filter(|folder| !folder.is_empty()) {
        return folder.into();
    }
    let inside = package.join("jit");
    let writable =
        nix::unistd::access(inside.as_std_path(), nix::unistd::AccessFlags::W_OK).is_ok();
    match variable("HOME") {
        Some(home) if !writable => Utf8PathBuf::from(home).join(".aiter/jit"),
        _ => inside,
    }
}

/// Inspects `folder`, the modules of the tree `package`, whose current commit was checked out at `checked_out`.
pub fn inspect(
    folder: &Utf8Path,
    package: &Utf8Path,
    checked_out: Option<SystemTime>,
    now: SystemTime,
) -> Products {
    let mut products = Products {
        folder: folder.to_owned(),
        ..Products::default()
    };
    let sources = newest_source(package);
    for path in entries(folder) {
        let Some(built) = modified(&path) else {
            continue;
        };
        if path.extension() != Some("so") {
            continue;
        }
        if checked_out.is_some_and(|at| built < at) {
            products.other_revision.push(path.clone());
        }
        if sources.is_some_and(|newest| built < newest) {
            products.older_than_sources.push(path.clone());
        }
        products.modules.push(path);
    }
    for path in entries(&folder.join("build")) {
        if path
            .file_name()
            .is_some_and(|name| name.starts_with("lock_"))
        {
            products
                .stale_locks
                .extend(stale(&path, now).then(|| path.clone()));
        } else if path.is_dir() {
            let lock = path.join("build/lock");
            products
                .stale_locks
                .extend((lock.exists() && stale(&lock, now)).then_some(lock));
            products.builds.push(path);
        }
    }
    products
}

/// From v0.1.18 on a lock has its owner (`pid` and host); before that, only its age is known.
fn stale(lock: &Utf8Path, now: SystemTime) -> bool {
    let text = fs_err::read_to_string(lock).unwrap_or_default();
    let pid = text
        .split(|character: char| !character.is_ascii_digit())
        .find(|digits| digits.len() > 1);
    let ours = hostname().is_some_and(|host| text.contains(&host));
    if let (Some(pid), true) = (pid, ours) {
        return !Utf8Path::new("/proc").join(pid).exists();
    }
    modified(lock)
        .and_then(|made| now.duration_since(made).ok())
        .is_some_and(|age| age > LOCK_AGE)
}

fn hostname() -> Option<String> {
    let name = fs_err::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// When a source that modules are built from was last changed.
fn newest_source(package: &Utf8Path) -> Option<SystemTime> {
    let beside = package.parent()?;
    let roots = [beside.join("csrc"), beside.join("aiter_meta/csrc")];
    let mut folders: Vec<_> = roots.into_iter().filter(|root| root.is_dir()).collect();
    let mut newest = modified(&package.join("jit/optCompilerConfig.json"));
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if matches!(
                path.extension(),
                Some("cu" | "h" | "hpp" | "cuh" | "cpp" | "py")
            ) {
                newest = newest.max(modified(&path));
            }
        }
    }
    newest
}

fn entries(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
    let Ok(entries) = folder.read_dir_utf8() else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path().to_owned()))
        .collect();
    paths.sort();
    paths
}

fn modified(path: &Utf8Path) -> Option<SystemTime> {
    fs_err::symlink_metadata(path).ok()?.modified().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_modules_and_dead_locks_are_told_from_good_ones() {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(keep.path()).unwrap();
        let package = root.join("aiter");
        let now = SystemTime::now();
        let write = |relative: &str, text: &str, age: u64| {
            let path = root.join(relative);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            crate::store::file::write_atomic(&path, text.as_bytes()).unwrap();
            let file = fs_err::File::options().write(true).open(&path).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        };
        let host = hostname().unwrap();
        write("csrc/include/a.h", "", 500);
        write("aiter/jit/module_old.so", "", 2000);
        write("aiter/jit/module_before_source.so", "", 600);
        write("aiter/jit/module_good.so", "", 100);
        write("aiter/jit/build/lock_module_a", "", 9000);
        write("aiter/jit/build/lock_module_b", "", 10);
        write(
            "aiter/jit/build/lock_module_c",
            &format!("999999999 {host}"),
            10,
        );
        write(
            "aiter/jit/build/lock_module_d",
            &format!("{} {host}", std::process::id()),
            9000,
        );
        write("aiter/jit/build/module_e/build/lock", "", 9000);
        let jit = package.join("jit");
        let products = inspect(&jit, &package, Some(now - Duration::from_secs(1000)), now);
        let names = |paths: &[Utf8PathBuf]| {
            paths
                .iter()
                .map(|path| path.strip_prefix(&jit).unwrap().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&products.other_revision), ["module_old.so"]);
        assert_eq!(
            names(&products.older_than_sources),
            ["module_before_source.so", "module_old.so"]
        );
        assert_eq!(products.modules.len(), 3);
        assert_eq!(names(&products.builds), ["build/module_e"]);
        assert_eq!(
            names(&products.stale_locks),
            [
                "build/lock_module_a",
                "build/lock_module_c",
                "build/module_e/build/lock"
            ]
        );
    }

    #[test]
    fn the_folder_of_modules_is_found_as_aiter_finds_it() {
        let set = |name: &str| (name == "AITER_JIT_DIR").then(|| "/jit".to_owned());
        assert_eq!(folder(Utf8Path::new("/x/aiter"), set), "/jit");
        let home = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
        assert_eq!(
            folder(Utf8Path::new("/nowhere/aiter"), home),
            "/home/me/.aiter/jit"
        );
    }
}
