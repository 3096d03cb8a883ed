//! What the documents say of a program's page, made from the page itself, and whether a page keeps to the format.

use std::collections::BTreeSet;

/// A table of the page's families: name, type, help.
pub fn table(page: &str) -> String {
    let mut out = String::from("| name | type | |\n|---|---|---|\n");
    let mut help = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            out += &format!("| `{name}` | {kind} | {help} |\n");
        }
    }
    out
}

/// What is wrong with a page: every family has help and type once, and samples of that family only; counters alone end in
/// `_total`, but for those named in `gauges_in_total`.
pub fn mistakes(text: &str, gauges_in_total: &[&str]) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut seen = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split(' ').next().unwrap_or_default().to_owned();
            if !seen.insert(current.clone()) {
                mistakes.push(format!("{current} comes twice"));
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            if name != current {
                mistakes.push(format!("the type of {name} stands below {current}"));
            }
            if (kind == "counter") != name.ends_with("_total") && !gauges_in_total.contains(&name) {
                mistakes.push(format!("{name} is a {kind}"));
            }
        } else {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let suffix = name.strip_prefix(&current);
            if !suffix.is_some_and(|suffix| ["", "_bucket", "_sum", "_count"].contains(&suffix)) {
                mistakes.push(format!("{line} stands below {current}"));
            }
            let value = line.rsplit(' ').next().unwrap_or_default();
            if value.parse::<f64>().is_err() {
                mistakes.push(format!("{line} has no number"));
            }
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_found() {
        let good = "# HELP a_total A.\n# TYPE a_total counter\na_total 1\n# HELP b B.\n# TYPE b gauge\nb{x=\"1\"} 2\n";
        assert_eq!(mistakes(good, &[]), Vec::<String>::new());
        assert_eq!(
            table(good).lines().skip(2).collect::<Vec<_>>(),
            ["| `a_total` | counter | A. |", "| `b` | gauge | B. |"]
        );
        for (bad, wrong) in [
            ("# HELP a A.\n# TYPE a counter\na 1\n", "a is a counter"),
            ("# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n", "a_total is a gauge"),
            ("# HELP a A.\n# TYPE a gauge\nb 1\n", "b 1 stands below a"),
            ("# HELP a A.\n# TYPE a gauge\na x\n", "a x has no number"),
            ("# HELP a A.\n# TYPE a gauge\na 1\n# HELP a A.\n# TYPE a gauge\na 1\n", "a comes twice"),
        ] {
            assert_eq!(mistakes(bad, &[]), [wrong]);
        }
        assert!(mistakes("# HELP a_total A.\n# TYPE a_total gauge\na_total 1\n", &["a_total"]).is_empty());
    }
}
