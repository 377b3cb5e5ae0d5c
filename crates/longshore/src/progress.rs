//! Progress on standard error: drawn in place for a person, plain lines for a log.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// One piece of work that is underway.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins to show progress.
    pub fn begin() -> Self {
        let bar = output::is_watched().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar }
    }

    /// Something happened that stays worth reading.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => output::say(text),
        }
    }

    /// What is going on now; shown to a person only, for it is outdated at once.
    pub fn status(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
