//! The domain in words: one condition for each template, named by its destination, and one for each group.

use serde_json::{Value, json};

use crate::ports::{Condition, ConditionState, StatusReport};

use super::handle::{Job, RenderHandle};
use super::unit::Unit;

impl StatusReport for RenderHandle {
    fn section(&self) -> &'static str {
        "templates"
    }

    fn conditions(&self) -> Vec<Condition> {
        self.jobs().iter().map(|job| condition(job)).collect()
    }

    fn detail(&self) -> Value {
        let jobs = self.jobs();
        Value::Array(jobs.iter().flat_map(|job| details(job)).collect())
    }
}

fn condition(job: &Job) -> Condition {
    let state = job.state();
    let what = if job.unit.group().is_some() { "generation" } else { "file" };
    let (level, message) = match (state.failure, state.hook_problem) {
        (Some(failure), _) if state.current_at.is_none() && !job.unit.path().exists() => {
            (ConditionState::Failed, format!("{}; there is no {what} yet", failure.words))
        }
        (Some(failure), None) => (ConditionState::Degraded, format!("{}; the old {what} stays", failure.words)),
        (Some(failure), Some(problem)) => {
            (ConditionState::Degraded, format!("{}; the old {what} stays, and: {problem}", failure.words))
        }
        (None, Some(problem)) => (ConditionState::Degraded, format!("the {what} is up to date, but: {problem}")),
        (None, None) if state.current_at.is_none() => (ConditionState::Failed, "not rendered yet".to_owned()),
        (None, None) => (ConditionState::Ok, String::new()),
    };
    Condition { component: component(&job.unit), state: level, message }
}

fn component(unit: &Unit) -> String {
    match unit.group() {
        Some(group) => format!("group/{}", group.name),
        None => format!("template/{}", unit.label().trim_start_matches('/')),
    }
}

fn details(job: &Job) -> impl Iterator<Item = Value> {
    let state = job.state();
    job.unit.members().iter().map(move |settings| {
        json!({
            "source": settings.source.display().to_string(),
            "destination": settings.file.destination.display().to_string(),
            "group": job.unit.group().map(|group| group.name.as_str()),
            "rendered_seconds_ago": state.current_at.map(|at| at.elapsed().as_secs()),
            "error": state.failure.as_ref().map(|failure| failure.words.as_str()),
            "hook_error": state.hook_problem,
        })
    })
}
