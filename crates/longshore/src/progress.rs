//! Progress on standard error: drawn in place for a person, plain lines for a log.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use longshore_types::ByteCount;

use crate::output;

/// How work is shown whose end is not known, steps of work, and bytes that come.
const SPINNER: &str = "{spinner} {wide_msg} {elapsed}";
const STEPS: &str = "{spinner} [{bar:20}] {pos}/{len} {wide_msg} {elapsed}";
const BYTES: &str = "{spinner} [{bar:20}] {binary_bytes} of {binary_total_bytes} {binary_bytes_per_sec} {wide_msg} {elapsed}";

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
            set_style(&bar, SPINNER);
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
                set_style(bar, STEPS);
            }
            bar.set_position(done.into());
        }
    }

    /// So many bytes of so many came, of which the rate is shown too.
    pub fn bytes(&self, done: ByteCount, all: ByteCount) {
        if let Some(bar) = &self.bar {
            let is_new = bar.length() != Some(all.0);
            if is_new {
                bar.set_length(all.0);
                set_style(bar, BYTES);
            }
            bar.set_position(done.0);
            // What is over before the next tick is seen, too.
            if is_new || done == all {
                bar.force_draw();
            }
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

#[cfg(test)]
mod tests {
    use indicatif::ProgressDrawTarget;

    use super::*;

    #[test]
    fn every_template_can_be_read_and_a_bar_of_bytes_goes_to_its_end() {
        for template in [SPINNER, STEPS, BYTES] {
            ProgressStyle::with_template(template).unwrap();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let progress = Progress { bar: Some(bar.clone()) };
        for (done, all) in [(0, 10), (4, 10), (12, 20), (20, 20)] {
            progress.bytes(ByteCount(done), ByteCount(all));
            assert_eq!((bar.position(), bar.length()), (done, Some(all)));
        }
    }
}
