//! The pages: links lead somewhere, the site has every page, the tests they name exist, and what they print runs.
//!
//! A link checker of our own, because it needs no network and no tool beyond `cargo test`, and because it knows one
//! thing that none of the usual ones does: a page of the site may link only to what the site has.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

fn repository() -> &'static Utf8Path {
    Utf8Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page below the folder, or of the folder itself for `.`, relative to the repository.
fn pages(folder: &str) -> Vec<Utf8PathBuf> {
    let mut found = Vec::new();
    for entry in repository().join(folder).read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(repository()).unwrap().to_owned();
        if entry.file_type().unwrap().is_dir() {
            if folder != "." {
                found.extend(pages(path.as_str()));
            }
        } else if path.extension() == Some("md") {
            found.push(path);
        }
    }
    found
}

fn text(page: &Utf8Path) -> String {
    fs_err::read_to_string(repository().join(page)).unwrap()
}

/// The lines of a page outside its code blocks, code spans taken out.
fn prose(page: &str) -> Vec<String> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.starts_with("    ") {
            lines.push(line.split('`').step_by(2).collect::<Vec<_>>().join("_"));
        }
    }
    lines
}

/// The targets of `[text](target)` and `![text](target)`.
fn links(page: &str) -> Vec<String> {
    let mut targets = Vec::new();
    for line in prose(page) {
        for part in line.split("](").skip(1) {
            targets.extend(part.split(')').next().map(str::to_owned));
        }
    }
    targets
}

/// The anchors that GitHub and mdBook give the headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        if let (false, Some(heading)) = (fenced, line.strip_prefix('#')) {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter_map(|character| match character {
                ' ' => Some('-'),
                '-' | '_' => Some(character),
                _ => character.is_alphanumeric().then_some(character),
            });
            found.insert(kept.collect());
        }
    }
    found
}

/// What is wrong with one link.
fn broken(from: &Utf8Path, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let file = match path {
        "" => from.to_owned(),
        _ => from.parent().unwrap().join(path.replace("%20", " ")),
    };
    let whole = repository().join(&file);
    if !whole.exists() {
        return Some("nothing is there".to_owned());
    }
    if from.starts_with("docs") {
        let inside = whole.canonicalize_utf8().unwrap();
        let site = repository().join("docs").canonicalize_utf8().unwrap();
        if !inside.starts_with(site) {
            return Some("it is outside the site".to_owned());
        }
    }
    if !anchor.is_empty() && !anchors(&text(&file)).contains(anchor) {
        return Some("no such heading".to_owned());
    }
    None
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for page in [".", "docs", "examples", "experiments", "tests"]
        .iter()
        .flat_map(|folder| pages(folder))
    {
        for target in links(&text(&page)) {
            if let Some(why) = broken(&page, &target) {
                wrong.push(format!("{page}: ({target}): {why}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_broken_link_would_be_noticed() {
    let page = Utf8Path::new("docs/compare.md");
    assert!(broken(page, "nowhere.md").is_some());
    assert!(broken(page, "lint.md#no-such-rule").is_some());
    assert!(
        broken(page, "../README.md").is_some(),
        "the site has no such page"
    );
    assert_eq!(broken(page, "lint.md#table-empty"), None);
    assert_eq!(
        links("[a](b.md) and `[c](d.md)` ![e](f.png)\n```\n[g](h.md)\n```\n"),
        ["b.md", "f.png"]
    );
}

#[test]
fn the_site_has_every_page() {
    let summary = text(Utf8Path::new("docs/SUMMARY.md"));
    let listed: BTreeSet<Utf8PathBuf> = links(&summary)
        .iter()
        .map(|target| Utf8Path::new("docs").join(target))
        .collect();
    let there: BTreeSet<Utf8PathBuf> = pages("docs")
        .into_iter()
        .filter(|page| page != "docs/SUMMARY.md")
        .collect();
    let missing: Vec<_> = there.difference(&listed).collect();
    assert!(missing.is_empty(), "add to docs/SUMMARY.md: {missing:?}");
}

#[test]
fn the_tests_that_the_playbook_page_names_exist() {
    let page = text(Utf8Path::new("docs/playbook.md"));
    let mut sources = String::new();
    for folder in ["tests", "src", "refengine"] {
        gather(&repository().join(folder), &mut sources);
    }
    // Names of tests are sentences, so nothing else in code spans looks like one.
    let named: BTreeSet<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|span| span.matches('_').count() >= 4)
        .filter(|span| {
            span.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect();
    assert!(named.len() > 25, "only {} tests are named", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !sources.contains(&format!("fn {name}()")))
        .collect();
    assert!(missing.is_empty(), "no such test: {missing:?}");
}

fn gather(folder: &Utf8Path, sources: &mut String) {
    for entry in folder.read_dir_utf8().unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            gather(entry.path(), sources);
        } else if entry.path().extension() == Some("rs") {
            *sources += &fs_err::read_to_string(entry.path()).unwrap();
        }
    }
}
