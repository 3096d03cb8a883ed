//! The text format of Prometheus, version 0.0.4: families with help and type, then samples.

use std::fmt::{Display, Write as _};

/// What a histogram has seen: upper bounds in seconds with how many fell into each bucket, how many lay beyond the last,
/// and the sum of all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub buckets: Vec<(f64, u64)>,
    pub beyond: u64,
    pub sum_seconds: f64,
}

/// A page under construction.
#[derive(Default)]
pub struct Page(String);

impl Page {
    pub fn text(self) -> String {
        self.0
    }

    /// Families that somebody else has written.
    pub fn add(&mut self, families: &str) {
        self.0.push_str(families);
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

    pub fn histogram(&mut self, name: &str, help: &str, seen: &Observed) {
        self.histograms(name, help, [(String::new(), seen)]);
    }

    /// One family with a histogram for each set of labels.
    pub fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, &'a Observed)>,
    ) {
        self.head(name, "histogram", help);
        for (labels, seen) in samples {
            // `le` comes behind the others.
            let open = match labels.strip_suffix('}') {
                Some(others) => format!("{others},"),
                None => "{".to_owned(),
            };
            let mut count = 0;
            for (bound, here) in &seen.buckets {
                count += here;
                let _ = writeln!(self.0, "{name}_bucket{open}le=\"{bound}\"}} {count}");
            }
            count += seen.beyond;
            let sum_seconds = seen.sum_seconds;
            let _ = writeln!(self.0, "{name}_bucket{open}le=\"+Inf\"}} {count}");
            let _ = writeln!(self.0, "{name}_sum{labels} {sum_seconds}\n{name}_count{labels} {count}");
        }
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
        let seen = Observed { buckets: vec![(0.001, 2), (0.5, 3)], beyond: 1, sum_seconds: 0.25 };
        page.histogram("h_seconds", "Times.", &seen);
        let one = Observed { buckets: vec![(1.0, 0)], ..Observed::default() };
        page.histograms("l_seconds", "By label.", [(labels(&[("To", "2")]), &one)]);
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
# HELP l_seconds By label.
# TYPE l_seconds histogram
l_seconds_bucket{To=\"2\",le=\"1\"} 0
l_seconds_bucket{To=\"2\",le=\"+Inf\"} 0
l_seconds_sum{To=\"2\"} 0
l_seconds_count{To=\"2\"} 0
";
        assert_eq!(page.text(), expected);
    }
}
