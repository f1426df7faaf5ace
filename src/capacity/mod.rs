//! Capacity planning: which configuration serves a workload within its objectives at the lowest cost.
//!
//! A plan names a space of configurations, constraints and objectives (`plan`). The space is expanded
//! (`space`), what breaks a constraint is left out with its reason (`study`), and of every other
//! configuration the highest request rate is searched that keeps the objectives (`evaluate`). Rows are
//! ranked and put on Pareto fronts (`answer`), and conclusions drawn (`conclude`). `docs/capacity.md` is
//! the user's side of it.

mod advice;
mod answer;
mod cache;
mod conclude;
mod confirm;
mod evaluate;
mod fleet;
mod plan;
mod pricing;
mod probe;
mod queue;
pub mod results_csv;
mod row;
mod search;
mod sensitivity;
mod shard;
mod slo;
mod space;
mod study;
mod watch;
mod what_if;

pub use advice::advice;
pub use answer::{Exclusion, Group, Key, exclusions, pareto, rank};
pub use cache::{ResultCache, digest};
pub use conclude::{Advice, Answers, conclude};
pub use confirm::{Confirmation, confirm};
pub use evaluate::{Capacity, Evaluated, Measure, Missed, NoRate, Subject};
pub use fleet::{FleetAnswer, FleetRow, fleets};
pub use plan::{Confirm, Constraints, Fleet, Objective, Plan, PlanError, Search, WhatIf};
pub use pricing::{Offer, PriceList, Prices};
pub use probe::{Broken, Probe};
pub use row::{Cause, Row, Status};
pub use search::{Grid, Highest, highest};
pub use sensitivity::{Effect, sensitivity};
pub use shard::{Part, Shard, merge, plan_digest};
pub use slo::{Objectives, Rule, Term};
pub use space::{Candidate, Space, scheduler_label};
pub use study::{Study, Task};
pub use what_if::{Choice, WhatIfRow, what_if};
