//! The own log's file (`storage.logs`): what is shown on standard error is kept here too, in a file that is begun anew now and then.
//!
//! Each line is one `write(2)`, so that a killed process loses none. A disk that is full costs lines, which are counted and said on
//! standard error; it never holds anybody up. The lines come here with secrets already taken out of them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{MissedTickBehavior, interval};
use tracing_subscriber::fmt::MakeWriter;

use super::error::TelemetryError;
use super::rolling::{self, Rolling};
use super::settings::LogFileSettings;
use crate::lifecycle::{Part, Readiness, Shutdown, Stage};

/// The file of the moment, if there is to be one.
#[derive(Default)]
pub struct LogFile(Mutex<Option<Open>>);

/// A file that is open.
pub struct Open {
    settings: LogFileSettings,
    file: File,
    identity: (u64, u64),
    begun: SystemTime,
    bytes: u64,
    lost: u64,
}

impl LogFile {
    /// Opens or creates what is asked for; nothing else changes.
    pub fn open(settings: &LogFileSettings) -> Result<Open, TelemetryError> {
        Open::new(settings).map_err(|cause| TelemetryError::LogFile { path: settings.path.clone(), cause })
    }

    /// Puts another file, or none, in the place of the present one; the same path goes on in the same file.
    pub fn change(&self, open: Option<Open>) {
        let lost = self.lock().as_ref().map_or(0, |open| open.lost);
        *self.lock() = open.map(|open| Open { lost, ..open });
    }

    /// Lines that could not be written.
    pub fn lost(&self) -> u64 {
        self.lock().as_ref().map_or(0, |open| open.lost)
    }

    /// Follows a file that was moved, and gives the settings by which old ones are tidied.
    fn look(&self) -> Option<LogFileSettings> {
        let mut current = self.lock();
        let open = current.as_mut()?;
        let in_place = std::fs::symlink_metadata(&open.settings.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == open.identity);
        if !in_place && let Ok(new) = Open::new(&open.settings) {
            *open = Open { lost: open.lost, ..new };
        }
        Some(open.settings.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn new(settings: &LogFileSettings) -> io::Result<Self> {
        if let Some(folder) = settings.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(&settings.path)?;
        let metadata = file.metadata()?;
        let begun = if metadata.len() == 0 { SystemTime::now() } else { metadata.modified().unwrap_or(UNIX_EPOCH) };
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { settings: settings.clone(), file, identity, begun, bytes: metadata.len(), lost: 0 })
    }

    fn write(&mut self, line: &[u8]) {
        if self.settings.rolling.is_due(self.begun, self.bytes, SystemTime::now()) {
            self.begin_anew();
        }
        match self.file.write_all(line) {
            Ok(()) => self.bytes += line.len() as u64,
            Err(cause) => {
                self.lost += 1;
                if self.lost.is_power_of_two() {
                    let path = self.settings.path.display();
                    let _ = writeln!(io::stderr().lock(), "log file {path}: {cause}; lines lost so far: {}", self.lost);
                }
            }
        }
    }

    /// On a failure the present file goes on.
    fn begin_anew(&mut self) {
        let begun = rolling::set_aside(&self.settings.path, SystemTime::now()).and_then(|_| Self::new(&self.settings));
        match begun {
            Ok(new) => *self = Self { lost: self.lost, ..new },
            Err(cause) => {
                // Tried again when another period is over, or as much was written again.
                (self.begun, self.bytes) = (SystemTime::now(), 0);
                let path = self.settings.path.display();
                let _ = writeln!(io::stderr().lock(), "log file {path}: it cannot be begun anew: {cause}");
            }
        }
    }
}

/// One line on its way into the file.
pub struct Line(Arc<LogFile>);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(open) = self.0.lock().as_mut() {
            open.write(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the subscriber its way into the file.
pub struct Lines(pub Arc<LogFile>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(self.0.clone())
    }
}

/// The part that looks after the file: follows one that was moved, compresses and removes old ones.
pub fn part(file: Arc<LogFile>) -> Part {
    Part::new("log file", Stage::Storage, Readiness::immediate(), move |shutdown| async move {
        keep(file, shutdown).await;
        Ok(())
    })
}

async fn keep(file: Arc<LogFile>, mut shutdown: Shutdown) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0_u32;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.requested() => return,
        }
        let tidy = count.is_multiple_of(TIDY_EVERY);
        count = count.wrapping_add(1);
        let Some(settings) = file.look().filter(|settings| tidy && keeps_old_files(&settings.rolling)) else {
            continue;
        };
        let work = tokio::task::spawn_blocking(move || {
            rolling::tidy(&settings.path, &settings.rolling, SystemTime::now())
                .map_err(|cause| (settings.path.display().to_string(), cause))
        });
        if let Ok(Err((path, cause))) = work.await {
            tracing::warn!(error = %cause, path, "log files that were set aside could not be tidied");
        }
    }
}

fn keeps_old_files(rolling: &Rolling) -> bool {
    rolling.compress || rolling.retention.is_some()
}

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Every so many looks: once a minute, and at the start.
const TIDY_EVERY: u32 = 60;
