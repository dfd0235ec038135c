//! The rooms of `src/` and who may use whom: no circle between them, and an engine that knows no backend.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use gemmtune::problem::Op;

/// Every Rust file below `folder`.
fn files(folder: &Utf8Path, found: &mut Vec<Utf8PathBuf>) {
    for entry in folder.read_dir_utf8().unwrap() {
        let path = entry.unwrap().into_path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension() == Some("rs") {
            found.push(path);
        }
    }
}

/// The code of `src/`, by room: without comments, and without the tests, which may use what they like.
fn code() -> BTreeMap<String, Vec<(Utf8PathBuf, String)>> {
    let root = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&root, &mut found);
    let mut rooms: BTreeMap<String, Vec<(Utf8PathBuf, String)>> = BTreeMap::new();
    for path in found {
        let inside = path.strip_prefix(&root).unwrap();
        let name = inside.file_name().unwrap();
        let room = inside.iter().next().unwrap().trim_end_matches(".rs");
        let is_test = name.ends_with("_tests.rs") || matches!(name, "tests.rs" | "toy.rs");
        if is_test || matches!(room, "lib" | "main") {
            continue;
        }
        let text = fs_err::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines = text.lines().map(|line| line.split("//").next().unwrap());
        let code = lines.collect::<Vec<_>>().join("\n");
        rooms.entry(room.to_owned()).or_default().push((path, code));
    }
    rooms
}

/// The rooms that a room's code names as `crate::room`.
fn uses() -> BTreeMap<String, BTreeSet<String>> {
    let rooms = code();
    let mut uses = BTreeMap::new();
    for (room, files) in &rooms {
        let mut used = BTreeSet::new();
        for (_, text) in files {
            for rest in text.split("crate::").skip(1) {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let name = &rest[..end.unwrap_or(rest.len())];
                if name != room && rooms.contains_key(name) {
                    used.insert(name.to_owned());
                }
            }
        }
        uses.insert(room.clone(), used);
    }
    uses
}

/// A way from `room` back to itself.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>, room: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![room.to_owned()]];
    let mut met = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in &uses[way.last().unwrap()] {
            let mut longer = way.clone();
            longer.push(next.clone());
            if next == room {
                return Some(longer);
            }
            if met.insert(next.clone()) {
                ways.push(longer);
            }
        }
    }
    None
}

#[test]
fn no_room_uses_a_room_that_uses_it() {
    let uses = uses();
    assert!(uses["kernel"].contains("engine"), "{uses:?}");
    for room in uses.keys() {
        assert_eq!(circle(&uses, room), None);
    }
}

#[test]
fn a_circle_would_be_found() {
    let uses = [("a", "b"), ("b", "c"), ("c", "b")];
    let uses: BTreeMap<String, BTreeSet<String>> = uses
        .map(|(room, used)| (room.to_owned(), BTreeSet::from([used.to_owned()])))
        .into();
    assert_eq!(circle(&uses, "a"), None);
    assert_eq!(circle(&uses, "b").unwrap().join(" "), "b c b");
}

#[test]
fn the_engine_names_no_server_and_no_kernel_library() {
    for (path, text) in &code()["engine"] {
        let text = text.to_ascii_lowercase();
        // The two table kinds that a plan is made with are `table`'s.
        let text = text
            .replace("table::aiter::", "")
            .replace("table::sglang_json::", "");
        for name in ["sglang", "aiter"] {
            assert!(!text.contains(name), "{path} says {name}");
        }
    }
}

#[test]
fn a_page_that_lists_operations_lists_them_all() {
    let root = Utf8Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("docs/reference/gemmtune-toml.md")];
    for entry in root.join("docs/schemas").read_dir_utf8().unwrap() {
        pages.push(entry.unwrap().into_path());
    }
    let mut lists = 0;
    for page in pages {
        let text = fs_err::read_to_string(&page).unwrap();
        // What a document names by the way is an example; a list has both of the first operations.
        let named =
            |op: &Op| text.contains(&format!("\"{op}\"")) || text.contains(&format!("`{op}`"));
        if !Op::ALL[..2].iter().all(named) {
            continue;
        }
        lists += 1;
        let left_out: Vec<&Op> = Op::ALL.iter().filter(|op| !named(op)).collect();
        assert!(left_out.is_empty(), "{page} leaves out {left_out:?}");
    }
    assert!(lists > 5, "only {lists} pages list operations");
}
