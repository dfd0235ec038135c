//! The report of a run: one page, one JSON document, one Markdown summary.
//!
//! [`model::Report`] is what a run found; [`write`] turns it into the three files. The page is one
//! file that fetches nothing and needs no script. This room measures and decides nothing.

mod chart;
mod checks;
mod fused_moe;
mod loads;
mod markdown;
pub mod model;
mod number;
pub mod operations;
mod page;
mod section;
mod step;
mod svg;
pub mod verdict;

use camino::{Utf8Path, Utf8PathBuf};

pub use model::Report;

use crate::store::file::write_atomic;

/// Name of the page.
pub const PAGE: &str = "report.html";
/// Name of the document.
pub const DOCUMENT: &str = "report.json";
/// Name of the summary.
pub const SUMMARY: &str = "report.md";

/// A report that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file cannot be written.
    #[error("write the report")]
    Write(#[source] std::io::Error),
    /// The document cannot be read.
    #[error("read the report")]
    Read(#[source] std::io::Error),
    /// The document does not have this form.
    #[error("read `{path}`")]
    Form {
        path: Utf8PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The document was written by a newer gemmtune.
    #[error(
        "read `{path}`: its format is {found}, this gemmtune knows {known}",
        known = model::FORMAT
    )]
    Newer {
        path: Utf8PathBuf,
        /// The format it has.
        found: u32,
    },
}

/// Writes `report.json`, `report.md` and `report.html` into `folder`, each whole or not at all, and
/// returns the path of the page.
pub fn write(report: &Report, folder: &Utf8Path) -> Result<Utf8PathBuf, ReportError> {
    let mut document = serde_json::to_vec_pretty(report)
        .map_err(|error| ReportError::Write(std::io::Error::other(error)))?;
    document.push(b'\n');
    let page = folder.join(PAGE);
    for (path, bytes) in [
        (folder.join(DOCUMENT), document),
        (folder.join(SUMMARY), markdown::text(report).into_bytes()),
        (page.clone(), page::html(report).into_bytes()),
    ] {
        write_atomic(&path, &bytes).map_err(ReportError::Write)?;
    }
    Ok(page)
}

/// Reads the document that [`write`] left in `folder`.
pub fn read(folder: &Utf8Path) -> Result<Report, ReportError> {
    let path = folder.join(DOCUMENT);
    let text = crate::store::file::read_text(&path).map_err(ReportError::Read)?;
    let form = |source| ReportError::Form {
        path: path.clone(),
        source,
    };
    // The format first: a newer document may have a different structure.
    let document: serde_json::Value = serde_json::from_str(&text).map_err(form)?;
    let found = document["format"].as_u64().unwrap_or(0) as u32;
    if found > model::FORMAT {
        return Err(ReportError::Newer { path, found });
    }
    serde_json::from_value(document).map_err(form)
}

#[cfg(test)]
mod tests;
