//! The domain in words: one condition for each template, named by its destination.

use serde_json::{Value, json};

use crate::ports::{Condition, ConditionState, StatusReport};

use super::context::destination_of;
use super::handle::{Job, RenderHandle};

impl StatusReport for RenderHandle {
    fn section(&self) -> &'static str {
        "templates"
    }

    fn conditions(&self) -> Vec<Condition> {
        self.jobs().iter().map(|job| condition(job)).collect()
    }

    fn detail(&self) -> Value {
        let jobs = self.jobs();
        Value::Array(jobs.iter().map(|job| detail(job)).collect())
    }
}

fn condition(job: &Job) -> Condition {
    let state = job.state();
    let (level, message) = match (state.failure, state.hook_problem) {
        (Some(failure), _) if state.current_at.is_none() && !job.settings.file.destination.exists() => {
            (ConditionState::Failed, format!("{}; there is no file yet", failure.words))
        }
        (Some(failure), _) => (ConditionState::Degraded, format!("{}; the old file stays", failure.words)),
        (None, Some(problem)) => (ConditionState::Degraded, format!("the file is up to date, but: {problem}")),
        (None, None) if state.current_at.is_none() => (ConditionState::Failed, "not rendered yet".to_owned()),
        (None, None) => (ConditionState::Ok, String::new()),
    };
    Condition {
        component: format!("template/{}", destination_of(&job.settings).trim_start_matches('/')),
        state: level,
        message,
    }
}

fn detail(job: &Job) -> Value {
    let state = job.state();
    json!({
        "source": job.settings.source.display().to_string(),
        "destination": destination_of(&job.settings),
        "rendered_seconds_ago": state.current_at.map(|at| at.elapsed().as_secs()),
        "error": state.failure.map(|failure| failure.words),
        "hook_error": state.hook_problem,
    })
}
