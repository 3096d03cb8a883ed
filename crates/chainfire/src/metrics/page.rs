//! The text format of Prometheus, version 0.0.4: families with help and type, then samples.

use std::fmt::{Display, Write as _};

/// A page under construction.
#[derive(Default)]
pub struct Page(String);

impl Page {
    pub fn text(self) -> String {
        self.0
    }

    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.counters(name, help, [(String::new(), value)]);
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.gauges(name, help, [(String::new(), value)]);
    }

    /// One family with a sample for each set of labels (see [`labels`]).
    pub fn counters<V: Display>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (String, V)>) {
        self.family(name, "counter", help, samples);
    }

    pub fn gauges<V: Display>(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (String, V)>) {
        self.family(name, "gauge", help, samples);
    }

    /// `buckets` are upper bounds in seconds and how many observations fell into each; the last has no upper bound.
    pub fn histogram(&mut self, name: &str, help: &str, buckets: &[(f64, u64)], beyond: u64, sum_seconds: f64) {
        self.head(name, "histogram", help);
        let mut count = 0;
        for (bound, here) in buckets {
            count += here;
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        count += beyond;
        let _ =
            writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum_seconds}\n{name}_count {count}");
    }

    fn family<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, V)>,
    ) {
        self.head(name, kind, help);
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}

/// `{name="value",…}`
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let all: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", all.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_as_prometheus_writes_it() {
        let mut page = Page::default();
        page.gauges("a", "What a is.", [(labels(&[("p", "x\"y\\z\n"), ("q", "")]), 1.5)]);
        page.histogram("h_seconds", "Times.", &[(0.001, 2), (0.5, 3)], 1, 0.25);
        let expected = "\
# HELP a What a is.
# TYPE a gauge
a{p=\"x\\\"y\\\\z\\n\",q=\"\"} 1.5
# HELP h_seconds Times.
# TYPE h_seconds histogram
h_seconds_bucket{le=\"0.001\"} 2
h_seconds_bucket{le=\"0.5\"} 5
h_seconds_bucket{le=\"+Inf\"} 6
h_seconds_sum 0.25
h_seconds_count 6
";
        assert_eq!(page.text(), expected);
    }
}
