//! Capacity planning: which configuration serves a workload within its objectives at the lowest cost.
//!
//! A plan names a space of configurations, constraints and objectives ([`plan`]). The space is expanded
//! ([`space`]), what breaks a constraint is left out with its reason ([`study`]), and of every other
//! configuration the highest request rate is searched that keeps the objectives ([`evaluate`]). Rows are
//! ranked and put on Pareto fronts ([`answer`]). `docs/capacity.md` is the user's side of it.

mod answer;
mod cache;
mod evaluate;
mod plan;
mod pricing;
mod probe;
mod queue;
pub mod results_csv;
mod row;
mod search;
mod slo;
mod space;
mod study;
mod watch;

pub use answer::{Exclusion, Group, Key, exclusions, pareto, rank};
pub use cache::{ResultCache, digest};
pub use evaluate::{Capacity, Evaluated, Measure, Missed, NoRate, Subject};
pub use plan::{Confirm, Constraints, Fleet, Objective, Plan, PlanError, Search, WhatIf};
pub use pricing::{Offer, PriceList, Prices};
pub use probe::{Broken, Probe};
pub use row::{Cause, Row, Status};
pub use search::{Grid, Highest, highest};
pub use slo::{Objectives, Rule, Term};
pub use space::{Candidate, Space, scheduler_label};
pub use study::{Study, Task};
