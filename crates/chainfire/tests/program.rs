//! The program as it is called: what it prints where, and how it ends, when there is nothing to run.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the program under a name, in a folder of its own, without any of the caller's settings.
fn run(name: &str, folder: &Path, arguments: &[&str]) -> Output {
    let program = folder.join(name);
    if !program.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_chainfire"), &program).unwrap();
    }
    Command::new(program).args(arguments).current_dir(folder).env_clear().output().unwrap()
}

#[test]
fn a_mistake_is_one_line_and_nothing_is_made() {
    let cases: [(&str, &[&str], &str); 5] = [
        (
            "chainfire",
            &["--dta-dir", "d"],
            "chainfire: unknown flag --dta-dir; the nearest known flag is --data-dir code=CF7010\n",
        ),
        (
            "chainfire",
            &["--data-dir", "d", "--raft-addr", "10.0.0.1:2380"],
            "chainfire: flag --raft-addr: network.raft_addr is 10.0.0.1:2380, but off loopback nodes speak to each other \
             under TLS only: name cert_file, key_file and ca_file in [network.tls] (scripts/generate-dev-certs.sh makes \
             them), or use an address such as 127.0.0.1:2380 code=CF7010\n",
        ),
        ("etcd", &["--nme", "x"], "etcd: unknown flag --nme; the nearest known flag is --name code=CF7010\n"),
        (
            "chainfire",
            &["etcd", "--nme", "x"],
            "chainfire: unknown flag --nme; the nearest known flag is --name code=CF7010\n",
        ),
        (
            "chainfire",
            &["--log-level", "loud", "--data-dir", "d"],
            concat!(
                "chainfire: flag --log-level: log.level must be error, warn, info, debug, trace, off, or a list such as ",
                "\"info,chainfire_raft=debug\", not \"loud\" code=CF7010\n"
            ),
        ),
    ];
    for (name, arguments, line) in cases {
        let folder = tempfile::tempdir().unwrap();
        let output = run(name, folder.path(), arguments);
        assert_eq!(String::from_utf8_lossy(&output.stderr), line);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the link to the program");
    }
}

#[test]
fn a_folder_that_is_not_there_is_named_and_not_made() {
    let strange = |word: &str| {
        format!(
            "chainfire {word}: mistyped is no data folder of a node: there is no `identity` in it; name the right one with \
             --data-dir code=CF4101\n"
        )
    };
    let missing = || "rocksdb_ldb: there is no folder mistyped code=CF4101\n".to_owned();
    let cases: [(&str, &[&str], String); 6] = [
        ("rocksdb_ldb", &["--db=mistyped", "repair"], missing()),
        ("rocksdb_ldb", &["--db=mistyped", "checkconsistency"], missing()),
        ("rocksdb_ldb", &["--db=mistyped", "list_column_families"], missing()),
        (
            "rocksdb_ldb",
            &["--db=empty", "repair"],
            "rocksdb_ldb: there is no database in empty code=CF4101\n".to_owned(),
        ),
        ("chainfire", &["check", "--data-dir=mistyped"], strange("check")),
        ("chainfire", &["repair", "--data-dir=mistyped"], strange("repair")),
    ];
    for (name, arguments, line) in cases {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let output = run(name, folder.path(), arguments);
        assert_eq!(String::from_utf8_lossy(&output.stderr), line);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
        let left = |path: &Path| std::fs::read_dir(path).unwrap().count();
        assert_eq!((left(folder.path()), left(&empty)), (2, 0), "only the link to the program, and what was there");
    }
}

/// And says in a start's words why one would be refused.
#[test]
fn a_check_reads_the_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--check-config", "--data-dir=d", "--tls-cert-file=c", "--tls-key-file=k", "--tls-ca-file=a"];
    let refused = |line: &str| {
        let output = run("chainfire", folder.path(), &flags);
        assert_eq!(String::from_utf8_lossy(&output.stderr), line);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
        assert!(!folder.path().join("d").exists());
    };
    refused(
        "chainfire: cannot read c (certificate): No such file or directory (os error 2); scripts/generate-dev-certs.sh DIR \
         makes a CA and a pair for each node code=CF7012\n",
    );
    std::fs::write(folder.path().join("c"), "").unwrap();
    let key = folder.path().join("k");
    std::fs::write(&key, "").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused("chainfire: key file k may be read by others (mode 0644): chmod 600 k code=CF7012\n");
}

/// In the journal the same line is one of the log, with the priority of an error: `journalctl -p err`, `grep ERROR`.
#[test]
fn a_mistake_is_an_error_in_the_journal() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = std::fs::File::create(&path).unwrap();
    let metadata = journal.metadata().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_chainfire"))
        .arg("--dta-dir=d")
        .env_clear()
        .env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino()))
        .stderr(journal)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(
        std::fs::read_to_string(path).unwrap(),
        "<3>ERROR chainfire_start: unknown flag --dta-dir; the nearest known flag is --data-dir code=CF7010\n"
    );
}

#[test]
fn what_is_asked_for_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let first_line = |name, arguments: &[&str]| {
        let output = run(name, folder.path(), arguments);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(first_line("chainfire", &["--version"]), format!("chainfire {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(first_line("etcd", &["--version"]), "etcd Version: 3.7.0");
    assert_eq!(first_line("chainfire", &["etcd", "-version"]), "etcd Version: 3.7.0");
    assert!(first_line("chainfire", &["--help"]).starts_with("Chainfire"));
    assert_eq!(first_line("chainfire", &["--check-config", "--data-dir", "d"]), "the configuration is valid");
    let printed = run("chainfire", folder.path(), &["--print-default-config"]).stdout;
    std::fs::write(folder.path().join("own.toml"), printed).unwrap();
    assert_eq!(first_line("chainfire", &["--check-config", "--config", "own.toml"]), "the configuration is valid");
    assert!(!folder.path().join("d").exists());
}
