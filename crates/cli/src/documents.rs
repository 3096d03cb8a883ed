//! What the documents say of the command line, held against the command line itself.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;

use crate::args::Cli;
use crate::commands::manual::markdown;

fn docs() -> PathBuf {
    base::crate_folder!().join("../../docs")
}

/// `UPDATE=1 cargo test --release -p cli documents` writes it anew.
#[test]
fn the_reference_is_current() {
    let file = docs().join("reference/cli.md");
    if std::env::var_os("UPDATE").is_some() {
        return fs::write(file, markdown()).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap();
    let differs = found.lines().zip(markdown().lines().map(str::to_owned)).position(|(found, wanted)| found != wanted);
    assert!(found == markdown(), "{} differs, from line {differs:?} (counted from 0) on", file.display());
}

#[test]
fn every_command_in_the_documents_is_understood() {
    let mut seen = 0;
    for file in pages(&docs().join("ops")) {
        for command in commands(&fs::read_to_string(&file).unwrap()) {
            seen += 1;
            let words = words(&command);
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{}: {command}\n{error}", file.display());
            }
        }
    }
    assert!(seen > 40, "commands are found in the pages: {seen}");
}

fn pages(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let all = entries.flat_map(|path| if path.is_dir() { pages(&path) } else { vec![path] });
    all.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The commands of a page that have a subcommand: lines of its blocks, and what stands in backquotes.
fn commands(page: &str) -> Vec<String> {
    const PROGRAM: &str = "chainfire-client ";
    let mut found = Vec::new();
    let joined = page.replace("\\\n", " ");
    let mut in_block = false;
    for line in joined.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.extend(line.find(PROGRAM).map(|at| line[at..].to_owned()));
        } else {
            found
                .extend(line.split('`').skip(1).step_by(2).filter(|code| code.starts_with(PROGRAM)).map(str::to_owned));
        }
    }
    // What the shell does with the output is not the client's.
    found
        .iter()
        .map(|command| command.split(['|', '<', '#', ';']).next().unwrap_or_default().trim().to_owned())
        .collect()
}

/// As the shell would hand them over, with a node's number and a revision for what stands for one.
fn words(command: &str) -> Vec<String> {
    let bare = command.split_whitespace().map(|word| word.trim_matches(['\'', '"', ')']));
    let filled = bare.filter(|word| *word != "…").map(|word| match word {
        "N" | "ID" | "OTHER" | "REVISION" => "4",
        other => other,
    });
    filled.map(str::to_owned).collect()
}

#[test]
fn commands_are_found_and_filled_in() {
    let page = "Call `chainfire-client status` or `systemctl`.\n```\nchainfire-client get a | grep b\nlater \\\n  on\n```\n\
                ```\nx=$(chainfire-client member-remove \\\n  --node-id N)\n```\n";
    assert_eq!(
        commands(page),
        ["chainfire-client status", "chainfire-client get a", "chainfire-client member-remove    --node-id N)"]
    );
    assert_eq!(words("chainfire-client member-remove --node-id N)").last().unwrap(), "4");
}
