//! Large searches in parts: every n-th search of the plan in one job, and all parts together again.

use super::cache::digest;
use super::plan::Plan;
use super::row::Row;
use serde::{Deserialize, Serialize};

/// One part of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Which, from 0.
    pub index: u32,
    /// Of how many.
    pub of: u32,
}

/// What a job leaves behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The version that wrote it.
    pub vidur_version: String,
    /// The plan, every field with its value.
    pub plan: Plan,
    /// SHA-256 of that.
    pub plan_digest: String,
    /// Which part.
    pub shard: Shard,
    /// Searches of the whole plan.
    pub searches: usize,
    /// The rows of this part, in order.
    pub rows: Vec<Row>,
}

/// The variables in which a scheduler of jobs says which one this is, and in which it says of how many.
const SCHEDULERS: [(&str, Option<&str>); 3] = [
    ("SLURM_ARRAY_TASK_ID", Some("SLURM_ARRAY_TASK_COUNT")),
    ("JOB_COMPLETION_INDEX", None),
    ("AWS_BATCH_JOB_ARRAY_INDEX", Some("AWS_BATCH_JOB_ARRAY_SIZE")),
];

impl Shard {
    /// The part that `asked` names: `i/n` counts from 1; `auto/n` takes the place, from 0, from the
    /// scheduler of jobs. Without `asked` both come from there, where it says both. `None` is the whole.
    ///
    /// # Errors
    /// When the text is no part, or the scheduler's variables do not say which.
    pub fn of(
        asked: Option<&str>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Shard>, String> {
        let number = |name: &str| {
            let Some(text) = variable(name) else { return Ok(None) };
            let wrong = |_| format!("{name} is `{text}`; expected a whole number from 0");
            text.trim().parse::<u32>().map(Some).map_err(wrong)
        };
        let mut place = None;
        for (name, count) in SCHEDULERS {
            if let Some(index) = number(name)? {
                place = Some((name, index, count));
                break;
            }
        }
        let Some(asked) = asked else {
            let Some((name, index, count)) = place else { return Ok(None) };
            let of = count.map_or(Ok(None), number)?;
            let Some(of) = of else {
                return Err(format!(
                    "{name} is {index}, and nothing says of how many; give --shard auto/N, or --shard \
                     1/1 for the whole search"
                ));
            };
            return Shard::new(index, of).map(Some).ok_or_else(|| too_high(name, index, of));
        };
        let wrong =
            || format!("--shard {asked}: expected i/n with i from 1 to n, such as 3/8, or auto/n");
        let (which, of) = asked.split_once('/').ok_or_else(wrong)?;
        let of: u32 = of.trim().parse().map_err(|_| wrong())?;
        if which.trim() == "auto" {
            let names: Vec<&str> = SCHEDULERS.iter().map(|s| s.0).collect();
            let (name, index, _) = place.ok_or_else(|| {
                format!("--shard {asked}: none of {} is set; give i/n", names.join(", "))
            })?;
            return Shard::new(index, of).map(Some).ok_or_else(|| too_high(name, index, of));
        }
        let i: u32 = which.trim().parse().map_err(|_| wrong())?;
        let shard = i.checked_sub(1).and_then(|index| Shard::new(index, of)).ok_or_else(wrong)?;
        Ok((of > 1).then_some(shard))
    }

    fn new(index: u32, of: u32) -> Option<Shard> {
        (index < of).then_some(Shard { index, of })
    }

    /// Whether the search at `place` belongs to this part.
    pub fn has(self, place: usize) -> bool {
        place % self.of as usize == self.index as usize
    }
}

fn too_high(name: &str, index: u32, of: u32) -> String {
    format!(
        "{name} is {index}, and there are {of} parts; expected 0 to {}: number array jobs from 0, and \
         when some are run again give --shard auto/N with N of the whole array",
        of.saturating_sub(1)
    )
}

/// SHA-256 of a plan with all its fields.
pub fn plan_digest(plan: &Plan) -> String {
    // Plain data with string keys always becomes JSON.
    digest(&serde_json::to_vec(plan).unwrap_or_default())
}

/// All rows of a plan from its parts, `named` for messages; and the plan.
///
/// # Errors
/// When parts are missing, come twice, or do not belong together.
pub fn merge(named: Vec<(String, Part)>) -> Result<(Plan, Vec<Row>), String> {
    let Some((first_name, first)) = named.first() else {
        return Err("no parts; expected the folders that the jobs wrote".into());
    };
    let of = first.shard.of;
    let (version, digest, searches) =
        (first.vidur_version.clone(), first.plan_digest.clone(), first.searches);
    let plan = first.plan.clone();
    let mut parts: Vec<Option<(&str, &[Row])>> = vec![None; of as usize];
    for (name, part) in &named {
        if part.plan_digest != digest || part.shard.of != of {
            return Err(format!(
                "{name} is part of another search than {first_name}: its plan or its number of parts \
                 differs"
            ));
        }
        if part.vidur_version != version {
            return Err(format!(
                "{name} was written by vidur {}, {first_name} by {version}; run it again",
                part.vidur_version
            ));
        }
        let place = parts.get_mut(part.shard.index as usize).ok_or_else(|| {
            format!("{name} says that it is part {} of {of}", part.shard.index + 1)
        })?;
        if let Some((other, _)) = place {
            return Err(format!(
                "{name} and {other} are both part {} of {of}",
                part.shard.index + 1
            ));
        }
        *place = Some((name, &part.rows));
    }
    let missing: Vec<String> = parts
        .iter()
        .enumerate()
        .filter(|(_, part)| part.is_none())
        .map(|(i, _)| (i + 1).to_string())
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "parts {} of {of} are missing; run them with --shard i/{of}",
            missing.join(", ")
        ));
    }
    let mut parts: Vec<_> = parts.into_iter().flatten().map(|(n, rows)| (n, rows.iter())).collect();
    let mut rows = Vec::with_capacity(searches);
    for place in 0..searches {
        let (name, part) = &mut parts[place % of as usize];
        let row = part.next().ok_or_else(|| format!("{name} has too few rows; run it again"))?;
        rows.push(row.clone());
    }
    Ok((plan, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(asked: Option<&str>, variables: &[(&str, &str)]) -> Result<Option<Shard>, String> {
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Shard::of(asked, find)
    }

    #[test]
    fn a_part_is_asked_for_or_told_by_the_scheduler_of_jobs() {
        let part = |index, of| Ok(Some(Shard { index, of }));
        assert_eq!(of(None, &[]), Ok(None));
        assert_eq!(of(Some("3/8"), &[]), part(2, 8));
        assert_eq!(of(Some("1/1"), &[("JOB_COMPLETION_INDEX", "3")]), Ok(None));
        assert_eq!(of(Some("auto/8"), &[("JOB_COMPLETION_INDEX", "3")]), part(3, 8));
        let slurm = [("SLURM_ARRAY_TASK_ID", "7"), ("SLURM_ARRAY_TASK_COUNT", "8")];
        assert_eq!(of(None, &slurm), part(7, 8));
        let aws = [("AWS_BATCH_JOB_ARRAY_INDEX", "0"), ("AWS_BATCH_JOB_ARRAY_SIZE", "2")];
        assert_eq!(of(None, &aws), part(0, 2));
    }

    #[test]
    fn what_is_no_part_says_what_was_expected() {
        for (asked, variables, expected) in [
            (Some("0/8"), vec![], "--shard 0/8: expected i/n with i from 1 to n"),
            (Some("9/8"), vec![], "--shard 9/8: expected i/n"),
            (Some("3"), vec![], "--shard 3: expected i/n"),
            (Some("auto/4"), vec![], "--shard auto/4: none of SLURM_ARRAY_TASK_ID, "),
            (
                None,
                vec![("JOB_COMPLETION_INDEX", "3")],
                "JOB_COMPLETION_INDEX is 3, and nothing says",
            ),
            // One task of an array that is run again.
            (
                None,
                vec![("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "1")],
                "SLURM_ARRAY_TASK_ID is 3, and there are 1 parts; expected 0 to 0: number array",
            ),
            (None, vec![("SLURM_ARRAY_TASK_ID", "x")], "SLURM_ARRAY_TASK_ID is `x`; expected"),
        ] {
            let error = of(asked, &variables).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn every_search_belongs_to_one_part() {
        for place in 0..20 {
            let parts = (0..7).filter(|index| Shard { index: *index, of: 7 }.has(place));
            assert_eq!(parts.count(), 1);
        }
    }
}
