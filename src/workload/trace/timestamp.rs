//! Dates as traces write them, read by hand: `2023-11-16 18:17:03.9799600`,
//! `2024-05-10 00:00:00.009930+00:00`, `2024-05-10 00:00:00`, `2024-05-10T00:00:00Z`.

/// An example for messages.
pub(super) const EXAMPLE: &str = "2024-05-10 00:00:00.009930+00:00";

const NS_PER_SECOND: i64 = 1_000_000_000;

/// Nanoseconds since 1970-01-01 00:00:00 UTC. A date without a zone counts as UTC; decimals past
/// the ninth are cut. `None` if the text is no such date or lies outside the years 1678 to 2261.
pub(super) fn parse(text: &[u8]) -> Option<i64> {
    let mut rest = text;
    let year = digits(&mut rest, 4)?;
    let month = digits(after(&mut rest, b"-")?, 2)?;
    let day = digits(after(&mut rest, b"-")?, 2)?;
    let hour = digits(after(&mut rest, b" Tt")?, 2)?;
    let minute = digits(after(&mut rest, b":")?, 2)?;
    let second = digits(after(&mut rest, b":")?, 2)?;
    let ns = fraction(&mut rest)?;
    let offset_minutes = zone(rest)?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let minutes = (days_since_1970(year, month, day)? * 24 + hour) * 60 + minute - offset_minutes;
    (minutes * 60 + second).checked_mul(NS_PER_SECOND)?.checked_add(ns)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; negative before it.
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let february = if leap { 29 } else { 28 };
    let days_of_months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month = usize::try_from(month).ok()?.checked_sub(1)?;
    if !(1..=*days_of_months.get(month)?).contains(&day) {
        return None;
    }
    let in_year: i64 = days_of_months.iter().take(month).sum::<i64>() + day - 1;
    Some(days_before_year(year) - days_before_year(1970) + in_year)
}

/// Days from 0001-01-01 to the first day of `year`.
fn days_before_year(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400)
}

/// Takes exactly `count` digits off the front.
fn digits(rest: &mut &[u8], count: usize) -> Option<i64> {
    let (head, tail) = rest.split_at_checked(count)?;
    *rest = tail;
    head.iter().try_fold(0, |value, b| b.is_ascii_digit().then(|| value * 10 + i64::from(b - b'0')))
}

/// Takes one byte off the front, which must be one of `any`.
fn after<'a, 'b>(rest: &'a mut &'b [u8], any: &[u8]) -> Option<&'a mut &'b [u8]> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    any.contains(first).then_some(rest)
}

/// Nanoseconds of `.9799600`, zero where there is no fraction; `None` for a point without digits.
fn fraction(rest: &mut &[u8]) -> Option<i64> {
    let Some((b'.', tail)) = rest.split_first() else { return Some(0) };
    let len = tail.iter().take_while(|b| b.is_ascii_digit()).count();
    let (decimals, tail) = tail.split_at_checked(len)?;
    *rest = tail;
    let padded = decimals.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    (len > 0).then(|| padded.fold(0, |ns, b| ns * 10 + i64::from(b - b'0')))
}

/// Minutes east of UTC of ``, `Z`, `+00`, `+0000` or `+00:00`.
fn zone(mut rest: &[u8]) -> Option<i64> {
    let sign = match rest.split_first() {
        None => return Some(0),
        Some((b'Z' | b'z', [])) => return Some(0),
        Some((b'+', _)) => 1,
        Some((b'-', _)) => -1,
        Some(_) => return None,
    };
    let hours = digits(after(&mut rest, b"+-")?, 2)?;
    if rest.first() == Some(&b':') {
        after(&mut rest, b":")?;
        if rest.is_empty() {
            return None;
        }
    }
    let minutes = if rest.is_empty() { 0 } else { digits(&mut rest, 2)? };
    (rest.is_empty() && hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(text: &str) -> Option<i64> {
        parse(text.as_bytes()).map(|ns| ns.div_euclid(NS_PER_SECOND))
    }

    #[test]
    fn dates_count_from_1970_through_leap_years() {
        for (text, expected) in [
            ("1970-01-01 00:00:00", 0),
            ("1969-12-31 23:59:59", -1),
            ("1972-02-29 00:00:00", 68_169_600),
            ("2000-02-29 12:00:00", 951_825_600),
            ("2000-03-01 00:00:00", 951_868_800),
            ("2023-11-16 18:17:03", 1_700_158_623),
            ("2024-02-29 23:59:59", 1_709_251_199),
            ("2024-05-10 00:00:00", 1_715_299_200),
            ("2100-03-01 00:00:00", 4_107_542_400),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn every_way_to_write_fraction_and_zone_is_read() {
        let ns = |text: &str| parse(text.as_bytes()).map(|ns| ns - 1_715_299_200 * NS_PER_SECOND);
        for (text, expected) in [
            ("2024-05-10 00:00:00.009930+00:00", 9_930_000),
            ("2024-05-10 00:00:00+00:00", 0),
            ("2024-05-10 00:00:00.9799600", 979_960_000),
            ("2024-05-10T00:00:00.1234567891Z", 123_456_789),
            ("2024-05-10 02:00:00+02:00", 0),
            ("2024-05-10 05:30:00.5+0530", 500_000_000),
            ("2024-05-09 16:00:00-08", 0),
            ("2024-05-09 23:45:00-00:15", 0),
        ] {
            assert_eq!(ns(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "2023-02-29 00:00:00",
            "1900-02-29 00:00:00",
            "2024-00-10 00:00:00",
            "2024-13-10 00:00:00",
            "2024-04-31 00:00:00",
            "2024-04-00 00:00:00",
            "2024-04-01 24:00:00",
            "2024-04-01 00:60:00",
            "2024-04-01 00:00:60",
            "2024-04-01 00:00:00.",
            "2024-04-01 00:00:00.1x",
            "2024-04-01 00:00:00+",
            "2024-04-01 00:00:00+1",
            "2024-04-01 00:00:00+01:",
            "2024-04-01 00:00:00+01:0",
            "2024-04-01 00:00:00+01:00x",
            "2024-04-01 00:00:00+24:00",
            "2024-04-01",
            "24-04-01 00:00:00",
            "1500-01-01 00:00:00",
            "9999-01-01 00:00:00",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn one_day_later_is_a_day_more(day in 0_i64..100_000) {
            // Walks the calendar the slow way from 1970.
            let (mut y, mut m, mut d, mut left) = (1970, 1, 1, day % 40_000);
            while left > 0 {
                d += 1;
                if days_since_1970(y, m, d).is_none() {
                    (d, m) = (1, m + 1);
                }
                if m == 13 {
                    (m, y) = (1, y + 1);
                }
                left -= 1;
            }
            prop_assert_eq!(days_since_1970(y, m, d), Some(day % 40_000));
        }

        #[test]
        fn no_bytes_make_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            near in "[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}[.0-9+:-]{0,20}",
        ) {
            let _ = parse(&bytes);
            let _ = parse(near.as_bytes());
        }
    }
}
