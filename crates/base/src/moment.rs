//! Dates that people and their tools read: UTC, to the second.

use std::time::Duration;

/// A moment, in whole seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// `2026-11-24`.
    pub fn date(self) -> String {
        let (year, month, day, ..) = self.parts();
        format!("{year:04}-{month:02}-{day:02}")
    }

    /// `2026-11-24 20:15 UTC`.
    pub fn to_the_minute(self) -> String {
        let (.., hour, minute, _) = self.parts();
        format!("{} {hour:02}:{minute:02} UTC", self.date())
    }

    /// `20261124T201500Z`, as in names of files.
    pub fn compact(self) -> String {
        let (year, month, day, hour, minute, second) = self.parts();
        format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
    }

    /// `2026-11-24T20:15:00Z`.
    pub fn rfc3339(self) -> String {
        let (year, month, day, hour, minute, second) = self.parts();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// Reads what [`Moment::compact`] wrote.
    pub fn parse_compact(text: &str) -> Option<Moment> {
        let bytes = text.as_bytes();
        if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
            return None;
        }
        let number = |from: usize, to: usize| {
            let digits = &bytes[from..to];
            digits
                .iter()
                .all(u8::is_ascii_digit)
                .then(|| digits.iter().fold(0, |sum, b| sum * 10 + u64::from(b - b'0')))
        };
        let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
        let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
        if year < 1970 {
            return None;
        }
        let moment = Moment(days_before(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second);
        (moment.compact() == text).then_some(moment)
    }

    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    fn parts(self) -> (u64, u64, u64, u64, u64, u64) {
        let (days, seconds) = (self.0 / 86_400, self.0 % 86_400);
        // Years that begin in March end with the leap day; 400 of them are an era.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let of_month = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        (era * 400 + year + next, month, of_month, seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

/// Days from 1970 to a date.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * month + 2) / 5 + day.saturating_sub(1);
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_795_551_300, "2026-11-24T20:15:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Moment(seconds).rfc3339(), text);
        }
        assert_eq!(Moment(951_782_399).to_the_minute(), "2000-02-28 23:59 UTC");
        assert_eq!(Moment(1_767_225_599).date(), "2025-12-31");
    }

    #[test]
    fn names_come_back_as_moments() {
        for seconds in (0..5_000_000_000).step_by(7_654_321) {
            assert_eq!(Moment::parse_compact(&Moment(seconds).compact()), Some(Moment(seconds)));
        }
        for wrong in
            ["", "20261124T201500", "20261324T201500Z", "20260230T000000Z", "20261124 201500Z", "19691231T235959Z"]
        {
            assert_eq!(Moment::parse_compact(wrong), None, "{wrong}");
        }
    }
}
