//! Work that gives way: reading hundreds of files takes a core for a while, and whoever is served meanwhile comes first.

use tokio::sync::oneshot;

/// Runs `work` on a thread of its own, with less of a claim to the processor than all others.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let (done, answer) = oneshot::channel();
    let thread = std::thread::Builder::new().name("configuration".to_owned()).spawn(move || {
        // Of this thread alone, on Linux. Where it is refused the work is as urgent as any.
        let _ = rustix::process::nice(LESS);
        // Nobody waits any more when the process stops.
        let _ = done.send(work());
    });
    thread.map_err(|error| error.to_string())?;
    answer.await.map_err(|_| "it ended early; the log says why".to_owned())
}

/// A third of an ordinary share where there is not enough for all.
const LESS: i32 = 5;

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn what_is_done_aside_has_less_of_a_claim_and_an_early_end_is_an_error() {
        let own = rustix::process::nice(0).unwrap();
        let there = super::run(|| rustix::process::nice(0).unwrap()).await.unwrap();
        assert!(there > own || own == 19, "{there} and {own}");
        assert_eq!(rustix::process::nice(0).unwrap(), own);
        let failed = super::run(|| panic!("as the test wants it")).await.unwrap_err();
        assert!(failed.contains("ended early"), "{failed}");
    }
}
