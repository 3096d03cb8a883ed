//! What plans neither looks at a clock nor draws from a random source of the process.

use std::fs;

const MUST_NOT_NAME: [&str; 5] = ["Instant::now", "SystemTime", "thread_rng", "HashMap", "HashSet"];
const PURE: [&str; 7] = ["plan", "view", "explain", "model.rs", "policy.rs", "scale.rs", "lib.rs"];

#[test]
fn the_planner_is_a_function_of_its_arguments() {
    let src = base::crate_folder!().join("src");
    let mut seen = 0;
    for name in PURE {
        let path = src.join(name);
        let files: Vec<_> = match fs::read_dir(&path) {
            Ok(folder) => folder.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => vec![path],
        };
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for word in MUST_NOT_NAME {
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                assert!(!code.into_iter().any(|line| line.contains(word)), "{} names {word}", file.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20);
}
