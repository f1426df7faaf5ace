//! Everything that follows from the rows of a plan.

use super::advice::advice;
use super::answer::{Exclusion, Group, exclusions, rank};
use super::confirm::{Confirmation, confirm};
use super::fleet::{FleetAnswer, fleets};
use super::row::Row;
use super::sensitivity::{Effect, sensitivity};
use super::study::{Study, Task};
use super::what_if::{WhatIfRow, what_if};
use serde::{Deserialize, Serialize};

/// The answers of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// By workload and objectives.
    pub groups: Vec<Group>,
    /// Why configurations are left out.
    pub exclusions: Vec<Exclusion>,
    /// What to change where nothing keeps the objectives.
    pub advice: Vec<Advice>,
    /// The best configurations on other random numbers.
    pub confirmations: Vec<Confirmation>,
    /// The smallest fleets.
    pub fleets: Vec<FleetAnswer>,
    /// How the answer moves.
    pub what_if: Vec<WhatIfRow>,
    /// Which settings matter, around the best configuration.
    pub sensitivity: Vec<Effect>,
}

/// What to change for one workload and set of objectives that nothing keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advice {
    /// The name of the workload.
    pub workload: String,
    /// The name of the objectives.
    pub slo: String,
    /// Reasons and changes, the nearest change first.
    pub lines: Vec<String>,
}

/// Ranks `rows`, which are those of `tasks`, and draws every conclusion that the plan asks for. `done` is
/// told of each further search.
///
/// # Errors
/// When a fleet cannot be simulated.
pub fn conclude(
    study: &Study<'_>,
    tasks: &[Task],
    rows: &mut [Row],
    done: &(dyn Fn() + Sync),
) -> Result<Answers, String> {
    let groups = rank(rows, study.plan.objective);
    let mut answers = Answers { exclusions: exclusions(rows), ..Answers::default() };
    for group in &groups {
        if group.best.is_none() {
            answers.advice.push(Advice {
                workload: group.workload.clone(),
                slo: group.slo.clone(),
                lines: advice(study, tasks, rows, group),
            });
            continue;
        }
        answers.confirmations.extend(confirm(study, tasks, rows, group));
        if let Some(settings) = study.plan.fleet {
            answers.fleets.extend(fleets(study, settings, tasks, rows, group)?);
        }
        if study.plan.sensitivity {
            answers.sensitivity.extend(sensitivity(study, tasks, rows, group));
        }
    }
    answers.what_if = what_if(study, tasks, rows, &groups, done);
    answers.groups = groups;
    Ok(answers)
}
