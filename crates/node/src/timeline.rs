//! When the parts of a start began and ended, for its trace.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use longshore_image::pull::PullEvent;
use longshore_telemetry::traces::{Span, Start, Tracer};

/// The name of the span of all that the node does.
const NODE: &str = "node";

/// A start as it goes.
#[derive(Debug)]
pub struct Timeline {
    nth: u32,
    began: SystemTime,
    parts: Vec<(&'static str, SystemTime, SystemTime)>,
}

impl Timeline {
    /// The `nth` start of an instance begins, counted from 0.
    pub fn begin(nth: u32) -> Self {
        Self { nth, began: SystemTime::now(), parts: Vec::new() }
    }

    /// A part of this name ended, which took so long.
    pub fn ended(&mut self, name: &'static str, took: Duration) {
        let now = SystemTime::now();
        self.parts.push((name, now.checked_sub(took).unwrap_or(now), now));
    }

    /// The image is here.
    pub fn pulled(&mut self, pull: &PullTimes) {
        let now = SystemTime::now();
        self.parts.push(("pull", pull.began, now));
        let seen = *pull.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = seen.last_done {
            self.parts.push(("unpack", seen.first_bytes.unwrap_or(pull.began), done));
        }
    }

    /// Tells of the start, now that it is over.
    pub fn tell(
        self,
        tracer: &Tracer,
        instance: &str,
        attributes: Vec<(&'static str, String)>,
        failure: Option<String>,
    ) {
        let start = Start::new(instance, self.nth);
        let node = start.span(NODE);
        let pull = start.span("pull");
        for (name, began, ended) in self.parts {
            let parent = Some(if name == "unpack" { pull } else { node });
            let (attributes, failure) = (Vec::new(), None);
            tracer.tell(Span { start, name, parent, began, ended, attributes, failure });
        }
        let (began, ended, parent) = (self.began, SystemTime::now(), start.root());
        tracer.tell(Span { start, name: NODE, parent, began, ended, attributes, failure });
    }
}

/// When a pull had its first bytes, and its last layer: layers are unpacked while they come.
#[derive(Debug)]
pub struct PullTimes {
    began: SystemTime,
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    first_bytes: Option<SystemTime>,
    last_done: Option<SystemTime>,
}

impl PullTimes {
    /// A pull begins.
    pub fn begin() -> Self {
        Self { began: SystemTime::now(), seen: Mutex::default() }
    }

    /// Something happened in it.
    pub fn note(&self, event: &PullEvent) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            PullEvent::LayerProgress { .. } => {
                seen.first_bytes.get_or_insert_with(SystemTime::now);
            }
            PullEvent::LayerDone { .. } => seen.last_done = Some(SystemTime::now()),
            PullEvent::Resolved { .. }
            | PullEvent::LayerReused { .. }
            | PullEvent::LayerPlain { .. } => {}
        }
    }
}
