//! What each task of a live run was told and what it got, as a table for whoever looks into a grade.

use std::fmt::Write;

use orchestratord::domain::task::Priority;

use crate::sim::Outcome;

/// A task that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Microseconds after the first could have come.
    pub at_us: u64,
    pub priority: Priority,
    pub tokens_max: u32,
    pub deadline_ms: u64,
}

const HEADER: &str = "arrival_us,priority,tokens_max,deadline_ms,queue_position,predicted_start_us,on_time_probability,\
                      started_us,ended_us,tokens,in_time\n";

/// Comma-separated values, a line for each task: microseconds from its arrival, and nothing for what never was.
pub fn as_csv(asked: &[Asked], outcomes: &[Outcome]) -> String {
    let mut text = HEADER.to_owned();
    let time = |us: Option<u64>| us.map(|us| us.to_string()).unwrap_or_default();
    for (Asked { at_us, priority, tokens_max, deadline_ms }, outcome) in asked.iter().zip(outcomes) {
        let Outcome { position, predicted_start_us, chance, tokens, .. } = outcome;
        let (started, ended) = (time(outcome.seated_us), time(outcome.ended_us));
        let (priority, in_time) = (priority.name(), u8::from(outcome.in_time()));
        let _ = writeln!(
            text,
            "{at_us},{priority},{tokens_max},{deadline_ms},{position},{predicted_start_us},{chance},{started},{ended},\
             {tokens},{in_time}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Ended;

    #[test]
    fn a_task_is_a_line_and_what_never_was_is_left_out() {
        let asked = |priority| Asked { at_us: 7, priority, tokens_max: 96, deadline_ms: 50 };
        let late = Outcome { position: 3, predicted_start_us: 1500.0, chance: 0.25, ..Outcome::default() };
        let done =
            Outcome { seated_us: Some(1200), ended_us: Some(9000), tokens: 12, ended: Some(Ended::Finished), ..late };
        let text = as_csv(&[asked(Priority::Batch), asked(Priority::Interactive)], &[late, done]);
        let lines: Vec<&str> = text.lines().collect();
        let columns = lines[0].split(',').count();
        assert!(lines.iter().all(|line| line.split(',').count() == columns), "{text}");
        assert_eq!(lines[1..], ["7,batch,96,50,3,1500,0.25,,,0,0", "7,interactive,96,50,3,1500,0.25,1200,9000,12,1"]);
    }
}
