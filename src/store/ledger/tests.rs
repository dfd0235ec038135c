use super::*;

struct Site {
    root: Utf8PathBuf,
    _keep: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let keep = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::try_from(keep.path().canonicalize().unwrap()).unwrap();
        Self { root, _keep: keep }
    }

    fn write(&self, name: &str, text: &str) -> Utf8PathBuf {
        let path = self.root.join(name);
        fs_err::write(&path, text).unwrap();
        path
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.root.join("ledger"), "test").unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs_err::read_dir(&self.root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn edit(path: &Utf8Path, after: &str) -> Change {
    Change::Edit {
        path: path.to_owned(),
        before: fs_err::read(path).unwrap(),
        after: after.as_bytes().to_vec(),
    }
}

fn text(path: &Utf8Path) -> String {
    fs_err::read_to_string(path).unwrap()
}

#[test]
fn undo_restores_bytes_mode_names_and_leaves_nothing_behind() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new();
    let file = site.write("a.py", "old\r\n");
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let built = site.write("k.so", "object");
    let before = site.names();
    let mut ledger = site.ledger();
    let id = ledger
        .apply(
            "deploy",
            serde_json::json!({"why": "test"}),
            &[
                edit(&file, "new\n"),
                Change::MoveAside {
                    path: built.clone(),
                    regenerated: true,
                },
            ],
        )
        .unwrap();
    assert_eq!(text(&file), "new\n");
    assert!(!built.exists());
    fs_err::write(&built, "rebuilt").unwrap();
    ledger.undo(id).unwrap();
    ledger.undo(id).unwrap();
    assert_eq!(text(&file), "old\r\n");
    assert_eq!(restore::mode(&file).unwrap(), 0o640);
    assert_eq!(text(&built), "object");
    ledger.close().unwrap();
    assert_eq!(site.names(), before);
}

#[test]
fn undo_refuses_a_file_edited_since_and_shows_the_edit() {
    let site = Site::new();
    let first = site.write("a.py", "one\n");
    let second = site.write("b.py", "one\n");
    let mut ledger = site.ledger();
    let changes = [edit(&first, "two\n"), edit(&second, "two\n")];
    let id = ledger
        .apply("switch", serde_json::Value::Null, &changes)
        .unwrap();
    fs_err::write(&second, "two\nmine\n").unwrap();
    let error = ledger.undo(id).unwrap_err();
    insta::assert_snapshot!(error.to_string().replace(site.root.as_str(), "[site]"), @"
    undo `switch`: `[site]/b.py` was edited since
    --- as gemmtune left it
    +++ as it is now
    @@ -1 +1,2 @@
     two
    +mine
    ");
    assert_eq!(text(&first), "two\n", "a refusal touches nothing");
    fs_err::write(&second, "two\n").unwrap();
    ledger.undo(id).unwrap();
    assert_eq!(text(&second), "one\n");
}

#[test]
fn an_operation_below_a_later_one_is_not_undone() {
    let site = Site::new();
    let file = site.write("a.py", "one\n");
    let mut ledger = site.ledger();
    let first = ledger
        .apply(
            "instrument",
            serde_json::Value::Null,
            &[edit(&file, "two\n")],
        )
        .unwrap();
    let second = ledger
        .apply("switch", serde_json::Value::Null, &[edit(&file, "three\n")])
        .unwrap();
    let error = ledger.undo(first).unwrap_err();
    assert!(matches!(error, LedgerError::Stacked { .. }), "{error}");
    ledger.undo(second).unwrap();
    ledger.undo(first).unwrap();
    assert_eq!(text(&file), "one\n");
}

#[test]
fn a_failing_change_takes_back_the_ones_before_it() {
    let site = Site::new();
    let file = site.write("a.py", "one\n");
    let built = site.write("k.so", "object");
    let mut ledger = site.ledger();
    let aside = Change::MoveAside {
        path: built.clone(),
        regenerated: true,
    };
    // It can be moved only once, which shows only when it is moved.
    let error = ledger
        .apply(
            "deploy",
            serde_json::Value::Null,
            &[edit(&file, "two\n"), aside.clone(), aside],
        )
        .unwrap_err();
    assert!(matches!(error, LedgerError::Io { .. }), "{error}");
    assert_eq!(
        (text(&file), text(&built)),
        ("one\n".into(), "object".into())
    );
    ledger.close().unwrap();
    assert_eq!(site.names(), ["a.py", "k.so"]);
}

#[test]
fn a_read_only_file_is_not_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new();
    let file = site.write("a.py", "one\n");
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
    let error = site
        .ledger()
        .apply("switch", serde_json::Value::Null, &[edit(&file, "two\n")])
        .unwrap_err();
    assert!(matches!(error, LedgerError::ReadOnly { .. }), "{error}");
    assert_eq!(text(&file), "one\n");
}

#[test]
fn a_link_is_followed_and_stays_a_link() {
    let site = Site::new();
    let file = site.write("real.py", "one\n");
    let link = site.root.join("link.py");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mut ledger = site.ledger();
    let id = ledger
        .apply("switch", serde_json::Value::Null, &[edit(&link, "two\n")])
        .unwrap();
    assert!(link.is_symlink());
    assert_eq!(text(&file), "two\n");
    ledger.undo(id).unwrap();
    assert_eq!(text(&file), "one\n");
}

/// Cuts the journal after each record, as a kill would, with the files as they were left at the
/// latest: opening the ledger brings back the old bytes, or keeps the finished operation.
#[test]
fn a_kill_after_any_record_is_recovered() {
    for applied in [false, true] {
        for records in 0..=3 {
            let site = Site::new();
            let file = site.write("a.py", "one\n");
            let mut ledger = site.ledger();
            let id = ledger
                .apply("switch", serde_json::Value::Null, &[edit(&file, "two\n")])
                .unwrap();
            let journal = site.root.join("ledger").join(JOURNAL);
            let lines = text(&journal);
            drop(ledger);
            let undo = serde_json::to_string(&Record {
                at: jiff::Timestamp::now(),
                event: Event::UndoBegun { id },
            })
            .unwrap();
            let all = format!("{lines}{undo}\n");
            let kept: String = all.split_inclusive('\n').take(records).collect();
            fs_err::write(&journal, &kept).unwrap();
            if records == 0 {
                // Nothing is recorded before the first record, so nothing was changed either.
                fs_err::write(&file, "one\n").unwrap();
            } else if records != 2 && !applied {
                fs_err::write(&file, "one\n").unwrap();
                fs_err::write(site.root.join(".gemmtune-staged-1-0-a.py"), "tw").unwrap();
            }
            let ledger = site.ledger();
            let expected = if records == 2 { "two\n" } else { "one\n" };
            assert_eq!(
                text(&file),
                expected,
                "{records} records, applied: {applied}"
            );
            ledger.close().unwrap();
            let names = site.names();
            assert_eq!(
                names.contains(&"ledger".to_owned()),
                records == 2,
                "{names:?}"
            );
            assert!(
                !names.iter().any(|name| name.contains("staged")),
                "{names:?}"
            );
        }
    }
}

#[test]
fn a_damaged_copy_is_not_restored() {
    let site = Site::new();
    let file = site.write("a.py", "one\n");
    let mut ledger = site.ledger();
    let id = ledger
        .apply("switch", serde_json::Value::Null, &[edit(&file, "two\n")])
        .unwrap();
    fs_err::write(site.root.join("ledger/saved").join(digest(b"one\n")), "?").unwrap();
    let error = ledger.undo(id).unwrap_err();
    assert!(matches!(error, LedgerError::Damaged { .. }), "{error}");
    assert_eq!(text(&file), "two\n");
}
