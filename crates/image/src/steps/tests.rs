//! What a process does at its steps, as the test that started it wants.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use super::Step;

/// Says what: `tell`, or `die`, a step, and how often it is reached until then.
pub(crate) const VARIABLE: &str = "LONGSHORE_TEST_STEPS";

enum Plan {
    /// Nobody asked.
    GoOn,
    /// Each is told.
    Tell,
    Die(Step, usize),
}

fn plan() -> Plan {
    let Ok(text) = std::env::var(VARIABLE) else { return Plan::GoOn };
    match text.split(' ').collect::<Vec<_>>()[..] {
        ["tell"] => Plan::Tell,
        ["die", step, nth] => Plan::Die(by_name(step), nth.parse().unwrap()),
        _ => panic!("{VARIABLE}={text}"),
    }
}

pub(crate) fn by_name(name: &str) -> Step {
    let step = Step::ALL.iter().find(|step| format!("{step:?}") == name);
    *step.unwrap_or_else(|| panic!("there is no step {name}"))
}

pub(crate) fn reached(step: Step) {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    static N_REACHED: Mutex<BTreeMap<Step, usize>> = Mutex::new(BTreeMap::new());
    match PLAN.get_or_init(plan) {
        Plan::GoOn => {}
        Plan::Tell => println!("step {step:?}"),
        Plan::Die(at, nth) => {
            // Held while it dies, so that no other thread goes further than its own next step.
            let mut n_reached = N_REACHED.lock().unwrap();
            let n = n_reached.entry(step).or_default();
            *n += 1;
            if (step, *n) == (*at, *nth) {
                let (own, kill) = (rustix::process::getpid(), rustix::process::Signal::KILL);
                rustix::process::kill_process(own, kill).unwrap();
            }
        }
    }
}
