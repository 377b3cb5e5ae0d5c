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
            set_style(&bar, "{spinner} {wide_msg} {elapsed}");
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

    /// So many steps of so many are done.
    pub fn steps(&self, done: u32, all: u32) {
        if let Some(bar) = &self.bar {
            if bar.length() != Some(all.into()) {
                bar.set_length(all.into());
                set_style(bar, "{spinner} [{bar:20}] {pos}/{len} {wide_msg} {elapsed}");
            }
            bar.set_position(done.into());
        }
    }

    /// What is going on now; shown to a person only, for it is outdated at once.
    pub fn status(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }
}

fn set_style(bar: &ProgressBar, template: &str) {
    // A template that cannot be read leaves the style as it is, which is worse to look at and no more.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
