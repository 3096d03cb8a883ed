//! What the documents say of `flaredb-client`, held against its command line.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;

use super::Cli;

#[test]
fn every_command_in_the_documents_is_understood() {
    let mut seen = 0;
    for file in pages(&base::crate_folder!().join("../../docs/ops")) {
        for command in commands(&fs::read_to_string(&file).unwrap()) {
            seen += 1;
            if let Err(error) = Cli::try_parse_from(&command) {
                panic!("{}: {command:?}\n{error}", file.display());
            }
        }
    }
    assert!(seen > 20, "commands are found in the pages: {seen}");
}

fn pages(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let all = entries.flat_map(|path| if path.is_dir() { pages(&path) } else { vec![path] });
    all.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// As the shell would hand them over, with a number for what stands for one. Commands are those with a subcommand, in blocks
/// and in backquotes.
fn commands(page: &str) -> Vec<Vec<String>> {
    const PROGRAM: &str = "flaredb-client ";
    let ends = |letter| matches!(letter, '|' | '<' | '>' | '#' | ';' | '`' | ')');
    let joined = page.replace("\\\n", " ");
    let found = joined.match_indices(PROGRAM).map(|(at, _)| {
        let line = joined[at..].lines().next().unwrap_or_default();
        let command = line.split(ends).next().unwrap_or_default();
        command.split_whitespace().map(|word| if word == "ID" { "4".to_owned() } else { word.to_owned() }).collect()
    });
    found.collect()
}

#[test]
fn commands_are_found_and_filled_in() {
    let page = "Call `flaredb-client operators`.\n```\nuntil flaredb-client explain region ID > x; do\n```\nThe flaredb-client.\n";
    assert_eq!(commands(page), [vec!["flaredb-client", "operators"], vec!["flaredb-client", "explain", "region", "4"]]);
}
