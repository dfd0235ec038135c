//! Where fused-MoE tables are: a `configs` folder with one folder for each Triton version, and the order in which a
//! server searches it.

use std::collections::BTreeSet;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use super::name::TableName;
use super::release::{Fallback, NEW_FOLDER, OLD_FOLDER, Release};
use crate::store::file::entries;
use crate::table::sglang_json::python_int;

/// The tables below one `configs` folder, or a number of them without folders for versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The `configs` folder, or the folder of the tables themselves.
    pub root: Utf8PathBuf,
    folders: Vec<Folder>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Folder {
    /// `3.6.0` for `triton_3_6_0`; `None` for tables that are in no such folder.
    triton: Option<String>,
    path: Utf8PathBuf,
    files: BTreeSet<String>,
}

/// Where a server finds a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// In the folder of the running Triton version.
    Exact(Utf8PathBuf),
    /// In another version's folder.
    OtherTriton {
        path: Utf8PathBuf,
        /// The version that the folder is for.
        triton: String,
    },
    Nowhere,
}

impl Found {
    /// The file, if one was found.
    pub fn path(&self) -> Option<&Utf8Path> {
        match self {
            Self::Exact(path) | Self::OtherTriton { path, .. } => Some(path),
            Self::Nowhere => None,
        }
    }
}

/// The search ends in an exception.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ValueError: from SGLang 0.5.12 on every folder `triton_*` is read as a version, and `{folder}` is none"
)]
pub struct NoVersion {
    pub folder: Utf8PathBuf,
}

/// The Triton version a folder is for.
pub fn triton_of_folder(name: &str) -> Option<String> {
    let version = name.strip_prefix("triton_")?;
    Some(version.replace('_', "."))
}

/// The folder of a Triton version.
pub fn folder_of_triton(version: &str) -> String {
    format!("triton_{}", version.replace('.', "_"))
}

/// The numbers of a version, if the runtime can parse it.
pub fn version_key(version: &str) -> Option<Vec<i64>> {
    version.split('.').map(python_int).collect()
}

impl Tables {
    /// Tables that are known already: for each folder its Triton version, its path and its files.
    pub fn new(
        root: &Utf8Path,
        folders: impl IntoIterator<Item = (Option<String>, Utf8PathBuf, BTreeSet<String>)>,
    ) -> Self {
        let folders = folders.into_iter().map(|(triton, path, files)| Folder {
            triton,
            path,
            files,
        });
        Self {
            root: root.to_owned(),
            folders: folders.collect(),
        }
    }

    /// The tables at `path`: an `sglang` package or a folder that contains one, the value of `SGLANG_MOE_CONFIG_DIR`,
    /// a `configs` folder, one of its `triton_X_Y_Z`, a folder of tables, or one table. `None` if there are none.
    pub fn open(path: &Utf8Path) -> io::Result<Option<Self>> {
        if !path.is_dir() {
            let file = path.file_name().unwrap_or_default();
            if file.parse::<TableName>().is_err() {
                return Ok(None);
            }
            path.metadata()?;
            let root = path.parent().unwrap_or(path).to_owned();
            let folder = Folder {
                triton: None,
                path: root.clone(),
                files: [file.to_owned()].into(),
            };
            let folders = vec![folder];
            return Ok(Some(Self { root, folders }));
        }
        let below = ["", "configs", OLD_FOLDER, NEW_FOLDER];
        let packages = ["", "sglang", "python/sglang"];
        for package in packages {
            for folder in below {
                let root = path.join(package).join(folder);
                for root in [root.join("configs"), root] {
                    let versions = if root.is_dir() {
                        versions(&root)?
                    } else {
                        Vec::new()
                    };
                    if !versions.is_empty() {
                        let folders = versions;
                        return Ok(Some(Self {
                            root: trimmed(&root),
                            folders,
                        }));
                    }
                }
            }
        }
        let name = path.file_name().unwrap_or_default();
        let folder = folder(
            path,
            triton_of_folder(name).filter(|version| version_key(version).is_some()),
        )?;
        let tables = folder
            .files
            .iter()
            .any(|file| file.parse::<TableName>().is_ok());
        Ok(tables.then(|| Self {
            root: path.to_owned(),
            folders: vec![folder],
        }))
    }

    /// Whether the tables are in folders for Triton versions, so that the version determines which is read.
    pub fn by_triton(&self) -> bool {
        self.folders.iter().any(|folder| folder.triton.is_some())
    }

    /// The Triton versions that have a folder, oldest first.
    pub fn tritons(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self
            .folders
            .iter()
            .filter_map(|folder| folder.triton.as_deref())
            .collect();
        all.sort_by_key(|version| version_key(version));
        all
    }

    /// Every file, with the folder's Triton version.
    pub fn files(&self) -> impl Iterator<Item = (Option<&str>, &str, Utf8PathBuf)> {
        self.folders.iter().flat_map(|folder| {
            let files = folder.files.iter();
            files.map(|file| {
                (
                    folder.triton.as_deref(),
                    file.as_str(),
                    folder.path.join(file),
                )
            })
        })
    }

    /// The device names that tables are for.
    pub fn devices(&self) -> BTreeSet<String> {
        self.files()
            .filter_map(|(_, file, _)| Some(file.parse::<TableName>().ok()?.device_name))
            .collect()
    }

    /// Where a server of `release` on Triton `triton` finds the table `name`.
    pub fn search(
        &self,
        name: &TableName,
        release: Release,
        triton: &str,
    ) -> Result<Found, NoVersion> {
        let name = name.to_string();
        let has = |folder: &&Folder| folder.files.contains(&name);
        if !self.by_triton() {
            let folder = self.folders.iter().find(has);
            return Ok(folder.map_or(Found::Nowhere, |folder| {
                Found::Exact(folder.path.join(&name))
            }));
        }
        let of = |version: &str| {
            let mut folders = self.folders.iter();
            folders.find(|folder| folder.triton.as_deref() == Some(version) && has(folder))
        };
        if let Some(folder) = of(triton) {
            return Ok(Found::Exact(folder.path.join(&name)));
        }
        let others = match release.fallback() {
            Fallback::Listed(listed) => {
                listed.iter().map(|version| (*version).to_owned()).collect()
            }
            Fallback::EveryFolder => self.newest_first()?,
        };
        for version in others.into_iter().filter(|version| version != triton) {
            if let Some(folder) = of(&version) {
                return Ok(Found::OtherTriton {
                    path: folder.path.join(&name),
                    triton: version,
                });
            }
        }
        Ok(Found::Nowhere)
    }

    fn newest_first(&self) -> Result<Vec<String>, NoVersion> {
        let mut versions = Vec::new();
        for folder in &self.folders {
            let Some(version) = &folder.triton else {
                continue;
            };
            let Some(key) = version_key(version) else {
                let folder = folder.path.clone();
                return Err(NoVersion { folder });
            };
            versions.push((key, version.clone()));
        }
        versions.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(versions.into_iter().map(|(_, version)| version).collect())
    }
}

fn trimmed(path: &Utf8Path) -> Utf8PathBuf {
    // `join("")` leaves a slash at the end.
    path.components().collect()
}

fn versions(root: &Utf8Path) -> io::Result<Vec<Folder>> {
    let mut folders = Vec::new();
    for entry in entries(root)? {
        if let Some(version) = triton_of_folder(entry.file_name())
            && entry.path().is_dir()
        {
            folders.push(folder(&trimmed(entry.path()), Some(version))?);
        }
    }
    folders.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(folders)
}

fn folder(path: &Utf8Path, triton: Option<String>) -> io::Result<Folder> {
    let files = entries(path)?
        .into_iter()
        .filter(|entry| entry.path().extension() == Some("json"))
        .map(|entry| entry.file_name().to_owned())
        .collect();
    Ok(Folder {
        triton,
        path: path.to_owned(),
        files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay_out(files: &[&str]) -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        for file in files {
            let path = root.join(file);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, "{}").unwrap();
        }
        (folder, root)
    }

    const NAME: &str =
        "E=8,N=128,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128, 128].json";

    fn found(root: &Utf8Path, release: &str, triton: &str) -> Result<String, NoVersion> {
        let tables = Tables::open(root).unwrap().unwrap();
        let found = tables.search(&NAME.parse().unwrap(), release.parse().unwrap(), triton)?;
        Ok(match &found {
            Found::Exact(path) => format!("exact {}", path.parent().unwrap().file_name().unwrap()),
            Found::OtherTriton { triton, .. } => format!("other {triton}"),
            Found::Nowhere => "nowhere".to_owned(),
        })
    }

    #[test]
    fn up_to_0_5_11_a_newer_folder_than_the_listed_ones_is_invisible_to_other_versions() {
        let files =
            ["3_1_0", "3_3_0", "3_5_1"].map(|version| format!("configs/triton_{version}/{NAME}"));
        let (_folder, root) = lay_out(&files.each_ref().map(String::as_str));
        let at = |release, triton| found(&root, release, triton).unwrap();
        assert_eq!(at("0.5.11", "3.5.1"), "exact triton_3_5_1");
        assert_eq!(at("0.5.11", "3.6.0"), "other 3.1.0");
        assert_eq!(at("0.5.12", "3.6.0"), "other 3.5.1");
        assert_eq!(at("0.5.12", "3.5.1"), "exact triton_3_5_1");
        assert_eq!(at("0.5.11", "3.3.0"), "exact triton_3_3_0");
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let files = ["3_9_0", "3_10_0"].map(|version| format!("triton_{version}/{NAME}"));
        let (_folder, root) = lay_out(&files.each_ref().map(String::as_str));
        assert_eq!(found(&root, "0.5.23", "3.2.0").unwrap(), "other 3.10.0");
    }

    #[test]
    fn a_folder_that_is_no_version_stops_the_search_from_0_5_12_on() {
        let files =
            ["3_4_0+git1", "3_4_0"].map(|version| format!("configs/triton_{version}/{NAME}"));
        let (_folder, root) = lay_out(&files.each_ref().map(String::as_str));
        assert_eq!(found(&root, "0.5.11", "3.6.0").unwrap(), "other 3.4.0");
        assert!(found(&root, "0.5.12", "3.6.0").is_err());
        let exact = found(&root, "0.5.12", "3.4.0+git1").unwrap();
        assert_eq!(
            exact, "exact triton_3_4_0+git1",
            "what is there is opened first"
        );
    }

    #[test]
    fn tables_are_found_from_every_folder_above_them() {
        let file = format!("site-packages/sglang/{NEW_FOLDER}/configs/triton_3_6_0/{NAME}");
        let (_folder, root) = lay_out(&[&file]);
        let module = root.join("site-packages/sglang").join(NEW_FOLDER);
        for path in [
            root.join("site-packages"),
            root.join("site-packages/sglang"),
            module.clone(),
            module.join("configs"),
            module.join("configs/triton_3_6_0"),
            root.join(&file),
        ] {
            let tables = Tables::open(&path).unwrap().unwrap();
            let files: Vec<_> = tables.files().map(|(_, _, path)| path).collect();
            assert_eq!(files, [root.join(&file)], "{path}");
            assert_eq!(tables.devices().len(), 1);
        }
        assert_eq!(Tables::open(&root).unwrap(), None);
        assert!(
            Tables::open(&root.join("E=1,N=2,device_name=A.json")).is_err(),
            "not there"
        );
    }
}
