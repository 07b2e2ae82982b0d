//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// A search for built binaries.
#[derive(Debug, Clone)]
pub struct Binaries {
    directories: Vec<PathBuf>,
}

impl Binaries {
    /// Looks in `directory`; without one in `LAB_BIN_DIR`, then beside the running program and
    /// one above, where cargo puts binaries next to its tests' directory.
    pub fn new(directory: Option<PathBuf>) -> Binaries {
        let named = directory.or_else(|| std::env::var_os("LAB_BIN_DIR").map(PathBuf::from));
        let directories = match named {
            Some(directory) => vec![directory],
            None => {
                let program = std::env::current_exe().unwrap_or_default();
                program.ancestors().skip(1).take(2).map(PathBuf::from).collect()
            }
        };
        Binaries { directories }
    }

    /// The absolute path of a binary.
    ///
    /// # Errors
    /// It is nowhere; the text says where was looked and how to build it.
    pub fn find(&self, name: &str) -> Result<PathBuf> {
        for directory in &self.directories {
            let path = directory.join(name);
            if path.is_file() {
                return path.canonicalize().with_context(|| format!("resolve {}", path.display()));
            }
        }
        let places: Vec<_> = self.directories.iter().map(|it| it.display().to_string()).collect();
        bail!(
            "no {name} in {}: build it with `cargo build --release`, or name its directory in LAB_BIN_DIR",
            places.join(" or ")
        )
    }
}
