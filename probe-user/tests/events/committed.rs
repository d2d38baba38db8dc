//! Files that are made from the code and committed.

use std::path::Path;
use std::{env, fs};

/// Fails if the committed file differs from what was made; `UPDATE_SCHEMA=1` rewrites it.
pub(crate) fn assert_committed(path: &str, made: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if env::var_os("UPDATE_SCHEMA").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, made).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == made,
        "{path} is not what the code makes. If the change is meant, run \
         `UPDATE_SCHEMA=1 cargo test -p probe-user --test events` and commit it.\nmade:\n{made}"
    );
}
