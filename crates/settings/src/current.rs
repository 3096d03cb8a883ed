//! For tests of programs: files of the repository that are made from the program's own tables. `UPDATE=1` writes them anew.

/// Compares a file of the repository with what it should be, or writes it.
pub fn current(path: &str, wanted: &str) {
    let file = base::crate_folder!().join("../..").join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(wanted.lines()).position(|(found, wanted)| found != wanted);
    assert!(
        found == wanted,
        "{path} is not current (line {}); UPDATE=1 cargo test --release --workspace reference",
        differs.map_or_else(|| "the last".to_owned(), |line| (line + 1).to_string())
    );
}
