//! Durations as people write them.

use std::time::Duration;

/// `1h30m`, `90s`, `250ms`: numbers with units, largest first or not, as Go writes durations.
/// `None` for anything else, and beyond a hundred years.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    const YEARS_100_S: f64 = 3.2e9;
    (total <= YEARS_100_S).then(|| Duration::from_secs_f64(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let cases = [("1h", 3_600_000), ("1h30m", 5_400_000), ("90s", 90_000), ("1.5s", 1_500), ("250ms", 250)];
        for (text, ms) in cases {
            assert_eq!(duration(text).map(|time| time.as_millis()), Some(ms), "{text}");
        }
        assert!(["", "5", "h", "1x", "-1h", "1e9h", "99999999999h"].iter().all(|text| duration(text).is_none()));
    }
}
