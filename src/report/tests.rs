//! The three files of a report, for the sample and for a nearly empty run.

use camino::Utf8PathBuf;

use super::model::{Fact, Skipped};
use super::*;

/// The sample report: made-up trials around figures measured once, see its ORIGIN.
fn sample() -> Report {
    serde_json::from_str(include_str!("../../testdata/report/sample.json")).unwrap()
}

fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::try_from(folder.path().to_owned()).unwrap();
    (folder, path)
}

#[test]
fn the_document_reads_back_and_gives_the_same_page() {
    let (_keep, folder) = folder();
    let page = write(&sample(), &folder).unwrap();
    let first = fs_err::read_to_string(&page).unwrap();
    let report = read(&folder).unwrap();
    assert_eq!(report, sample());
    write(&report, &folder).unwrap();
    assert_eq!(fs_err::read_to_string(&page).unwrap(), first);
}

#[test]
fn the_page_says_the_verdict_first_and_fetches_nothing() {
    let page = page::html(&sample());
    let verdict = page.find("<h1").unwrap();
    assert!(verdict < page.find("<h2").unwrap());
    for forbidden in [
        "http://", "https://", "<script", "<link", "<img", "src=", "@import", "url(\"",
    ] {
        // The page may quote a command that names the user's own server.
        let outside: String = page
            .split("<pre")
            .map(|part| part.split("</pre>").last().unwrap_or(""))
            .collect();
        assert!(!outside.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn every_section_of_the_sample_has_its_picture_and_its_table() {
    let page = page::html(&sample());
    for id in [
        "pairs",
        "metrics",
        "step",
        "time",
        "shapes",
        "hits",
        "roofline",
        "checks",
        "skipped",
        "reproduce",
        "run",
    ] {
        let start = page
            .find(&format!("<section id=\"{id}\""))
            .unwrap_or_else(|| panic!("{id}"));
        let section = &page[start..start + page[start..].find("</section>").unwrap()];
        if [
            "pairs", "metrics", "step", "time", "shapes", "hits", "roofline",
        ]
        .contains(&id)
        {
            assert!(section.contains("<svg"), "{id} has a picture");
            assert!(section.contains("role=\"img\""));
        }
        assert!(section.contains("<table"), "{id} has a table");
        assert!(
            !section.contains("NaN") && !section.contains("inf,"),
            "{id}"
        );
    }
}

#[test]
fn where_the_time_goes_is_said_by_load_and_operation() {
    let report = sample();
    let page = page::html(&report);
    let says = &report.profile[0].says;
    assert!(
        page.contains(&format!("<strong>{says}.</strong>")),
        "{says}"
    );
    // What is not known does not appear on the page.
    let without = Report {
        profile: Vec::new(),
        ..report
    };
    assert!(!page::html(&without).contains("id=\"step\""));
}

#[test]
fn the_summary_says_all_of_the_sample() {
    insta::assert_snapshot!("summary_of_the_sample", markdown::text(&sample()));
}

#[test]
fn text_from_a_run_is_escaped() {
    let page = page::html(&Report {
        name: "<script>alert(1)</script>".to_owned(),
        ended_early: Some("a < b & c".to_owned()),
        machine: vec![Fact::new("<b>", "\"quoted\" 'text'")],
        skipped: vec![Skipped {
            what: "</table>".to_owned(),
            why: "x".to_owned(),
        }],
        ..Report::default()
    });
    assert!(!page.contains("<script>") && !page.contains("<b>"));
    assert!(page.contains("a &lt; b &amp; c"));
    assert_eq!(
        page.matches("</table>").count(),
        page.matches("<table").count()
    );
}

#[test]
fn what_stands_against_a_verdict_is_said_beside_it() {
    let mut report = sample();
    let header = |report: &Report| {
        let page = page::html(report);
        let header = &page[page.find("<header").unwrap()..page.find("<nav").unwrap()];
        header.replace("><", ">\n<")
    };
    let good = header(&report);
    insta::assert_snapshot!("head_of_the_sample", good);
    report.layout[1].error_ratio = None;
    if let Some(comparison) = &mut report.comparison {
        comparison.verdict = crate::compare::Verdict::Inconclusive;
        comparison.unfair = vec!["max_concurrency: baseline 1, tuned 2".to_owned()];
    }
    insta::assert_snapshot!("head_of_an_unfair_comparison", header(&report));
}

#[test]
fn a_report_of_nothing_is_still_a_page() {
    let page = page::html(&Report::default());
    assert!(page.contains("No comparison was made in this run"));
    assert!(!page.contains("<h2"));
}

#[test]
fn odd_numbers_do_not_break_the_pictures() {
    let mut report = sample();
    for row in &mut report.shapes {
        if let Some(before) = &mut row.before {
            before.us = 0.0;
        }
    }
    if let Some(limits) = &mut report.roofline {
        limits.tflops = 0.0;
    }
    if let Some(comparison) = &mut report.comparison {
        comparison.metrics[0].each.truncate(1);
        comparison.metrics[1].ratio = crate::compare::Ratio::default();
    }
    let page = page::html(&report);
    assert!(!page.contains("NaN") && !page.contains("\"inf") && !page.contains(",inf"));
}

#[test]
fn a_newer_document_is_refused() {
    let (_keep, folder) = folder();
    fs_err::write(folder.join(DOCUMENT), r#"{"format": 99, "other": true}"#).unwrap();
    assert!(matches!(
        read(&folder),
        Err(ReportError::Newer { found: 99, .. })
    ));
    fs_err::write(folder.join(DOCUMENT), "{").unwrap();
    assert!(matches!(read(&folder), Err(ReportError::Form { .. })));
    fs_err::remove_file(folder.join(DOCUMENT)).unwrap();
    assert!(matches!(read(&folder), Err(ReportError::Read(_))));
}
