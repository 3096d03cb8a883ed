//! The program as it is called: what it prints where, and how it ends, when there is nothing to run.

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
