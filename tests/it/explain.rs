//! `vidur explain`: parts of latencies add up to what the recorder saw, to the nanosecond.

use crate::sim_properties::{configs, workloads};
use crate::support::LinearCost;
use proptest::prelude::*;
use vidur::explain::{Ledger, Part};
use vidur::metrics::Recorder;
use vidur::sim;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn every_nanosecond_is_booked_once(
        (config, stages) in configs(),
        workload in workloads(),
    ) {
        let cost = LinearCost { stages };
        let mut observers = (Recorder::new(config.num_replicas, false), Ledger::new(&cost));
        if sim::run(&config, &cost, &workload, &mut observers).is_err() {
            return Ok(());
        }
        let (recorder, ledger) = observers;
        prop_assert_eq!(ledger.done().count(), recorder.requests.len());
        for (account, record) in ledger.accounts.iter().zip(&recorder.requests) {
            let first = account.to_first.unwrap();
            let ttft = record.first_token_at.since(record.arrived_at).as_ns();
            prop_assert_eq!(first.total(), ttft);
            let e2e = record.completed_at.since(record.arrived_at).as_ns();
            prop_assert_eq!(account.all.total(), e2e);
            prop_assert_eq!(account.after_first().total(), e2e - ttft);
            let queued = record.scheduled_at.since(record.arrived_at).as_ns();
            let before = account.all[Part::FrontEnd] + account.all[Part::Queueing];
            prop_assert_eq!(before, queued);
            let lost = account.all[Part::Preemption] > 0;
            prop_assert!(!lost || record.restarts > 0);
            prop_assert!(stages > 1 || account.all[Part::PipelineBubble] == 0);
        }
    }
}
