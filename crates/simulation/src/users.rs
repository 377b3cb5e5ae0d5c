//! Users, who deploy, scale, roll back, remove, and operators, who close and drain. One asks for one thing at a
//! time, gives up after a while, and then knows nothing of what became of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::Method;
use serde_json::{Value, json};

use crate::checks::App;
use crate::world::{MAX, N_LOCATIONS, World};

/// The apps that there are.
pub const APPS: [&str; 3] = ["api", "job", "web"];
/// How long a user waits for an answer.
const PATIENCE: u64 = 10_000;

/// What may be of an app by what its users were told. Where they do not know, nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    exists: Option<bool>,
    release: Option<u64>,
    count: Option<u64>,
}

impl Default for Wish {
    fn default() -> Self {
        Self { exists: Some(false), release: None, count: None }
    }
}

impl Wish {
    /// What is stored instead, where that is not what was acknowledged.
    pub fn differs(&self, stored: Option<&App>) -> Option<String> {
        let exists = stored.is_some_and(|app| !app.removing);
        if self.exists.is_some_and(|expected| expected != exists) {
            return Some(format!("{self:?} was acknowledged, {stored:?} is stored"));
        }
        let app = stored.filter(|_| exists)?;
        let is_it = |release| app.release == release || app.failed == Some(release);
        let is_kept =
            self.release.is_none_or(is_it) && self.count.is_none_or(|count| app.count == count);
        (!is_kept).then(|| format!("{self:?} was acknowledged, {app:?} is stored"))
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Deploy { count: u64, mark: u64 },
    Scale(u64),
    Rollback,
    Remove,
}

type Answer = Arc<Mutex<Option<(u16, Value)>>>;

/// A request that was not answered yet.
struct Asked {
    app: &'static str,
    wanted: Wanted,
    answer: Answer,
    /// Whom, in which of its lives.
    global: (usize, u64),
    gives_up_at: u64,
    /// Nobody waits for it any more.
    given_up: bool,
}

/// The users.
#[derive(Default)]
pub struct Users {
    wishes: BTreeMap<&'static str, Wish>,
    asked: Vec<Asked>,
    last_mark: u64,
    /// How many changes were acknowledged.
    pub n_acknowledged: u64,
}

impl Users {
    /// What is not stored although it was acknowledged.
    pub fn lost(&self, apps: &BTreeMap<String, App>) -> Option<String> {
        APPS.iter().find_map(|app| {
            let wish = self.wishes.get(app).copied().unwrap_or_default();
            wish.differs(apps.get(*app)).map(|what| format!("{app}: {what}"))
        })
    }

    /// Whether something that was asked for may still be done.
    pub fn wait(&self) -> bool {
        !self.asked.is_empty()
    }
}

/// What is wished of an app after an answer to this.
fn after(before: Wish, wanted: &Wanted, answer: Option<&(u16, Value)>) -> Wish {
    let Some((status, body)) = answer.filter(|(status, _)| *status < 500) else {
        // It may have been done or not.
        return match wanted {
            Wanted::Deploy { .. } => Wish { exists: None, release: None, count: None },
            Wanted::Scale(_) => Wish { count: None, ..before },
            Wanted::Rollback => Wish { release: None, ..before },
            Wanted::Remove => Wish { exists: None, ..before },
        };
    };
    if *status >= 300 {
        return before;
    }
    let release = body["release"]["number"].as_u64();
    match wanted {
        Wanted::Deploy { count, .. } => Wish { exists: Some(true), release, count: Some(*count) },
        Wanted::Scale(count) => Wish { count: Some(*count), ..before },
        Wanted::Rollback => Wish { release, ..before },
        Wanted::Remove => Wish { exists: Some(false), release: None, count: None },
    }
}

impl World {
    /// Asks for something, where nobody waits for an answer already.
    pub(crate) fn ask(&mut self) {
        let app = APPS[self.random.usize(0..APPS.len())];
        let is_busy = self.users.asked.iter().any(|one| one.app == app && !one.given_up);
        let wanted = match self.random.u32(0..12) {
            0..=4 => {
                self.users.last_mark += 1;
                let count = self.random.u64(1..=4);
                Wanted::Deploy { count, mark: self.users.last_mark }
            }
            5..=7 => Wanted::Scale(self.random.u64(0..=4)),
            8 | 9 => Wanted::Rollback,
            10 => Wanted::Remove,
            _ => return self.operate(),
        };
        if !is_busy {
            self.send(app, wanted);
        }
    }

    fn send(&mut self, app: &'static str, wanted: Wanted) {
        let path = format!("/v1/projects/default/apps/{app}");
        let (method, path, body) = match &wanted {
            Wanted::Deploy { count, mark } => {
                // The jobs need a GPU, of whichever node.
                let gpu = (app == "job").then(|| json!({"memory": "1GiB"}));
                let document = json!({
                    "app": app, "image": "default/web:1", "port": 80, "count": count, "max": MAX,
                    "env": {"MARK": mark.to_string()},
                    "resources": {"memory": "1GiB", "cpu": 0.1, "disk": "4MiB", "gpu": gpu},
                });
                (Method::PUT, path, json!({"manifest": document}))
            }
            Wanted::Scale(count) => (Method::POST, path + "/scale", json!({"count": count})),
            Wanted::Rollback => (Method::POST, path + "/rollback", json!({})),
            Wanted::Remove => (Method::DELETE, path, Value::Null),
        };
        let Some((global, answer)) = self.call(method, &path, &body) else { return };
        self.note(&format!("users ask for {wanted:?} of {app}"));
        let (gives_up_at, given_up) = (self.now + PATIENCE, false);
        self.users.asked.push(Asked { app, wanted, answer, global, gives_up_at, given_up });
    }

    /// Sends a request to whoever leads, awake or not.
    fn call(&mut self, method: Method, path: &str, body: &Value) -> Option<((usize, u64), Answer)> {
        let mut leads = self.globals.iter().enumerate();
        let (number, global, handle) =
            leads.find_map(|(number, global)| Some((number, global, global.role.handle()?)))?;
        let (answer, call) = (Answer::default(), handle.call(method, path, body));
        let answered = Arc::clone(&answer);
        global.role.process.as_ref()?.spawn(async move {
            let answer = call.await;
            *answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        });
        Some(((number, global.role.n_lives), answer))
    }

    /// An operator closes or opens something, and does not wait for the answer.
    fn operate(&mut self) {
        let number = self.random.usize(0..N_LOCATIONS);
        let name = self.locations[number].name.clone();
        let path = match self.random.bool() {
            true => format!("/v1/locations/{name}/cordon"),
            false => format!("/v1/locations/{name}/nodes/{name}-1/cordon"),
        };
        let drains = self.random.bool();
        // More is opened than closed, or soon there is one location left.
        let opens = self.random.u32(0..5) < 3;
        let method = if opens { Method::DELETE } else { Method::PUT };
        self.note(&format!("operators: {method} {path} drains {drains}"));
        self.call(method, &path, &json!({"drains": drains}));
    }

    /// Opens all that operators closed.
    pub(crate) fn open_all(&mut self) {
        for number in 0..N_LOCATIONS {
            let name = self.locations[number].name.clone();
            for path in [
                format!("/v1/locations/{name}/cordon"),
                format!("/v1/locations/{name}/nodes/{name}-1/cordon"),
            ] {
                self.call(Method::DELETE, &path, &Value::Null);
            }
        }
    }

    /// Looks for answers.
    pub(crate) fn hear_answers(&mut self) {
        let asked = std::mem::take(&mut self.users.asked);
        for mut one in asked {
            let answer = one.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
            let (number, life) = one.global;
            let role = &self.globals[number].role;
            let is_alive = role.n_lives == life && role.process.is_some();
            let is_over = answer.is_some() || !is_alive;
            let gives_up = !one.given_up && self.now >= one.gives_up_at;
            if !is_over && !gives_up {
                self.users.asked.push(one);
                continue;
            }
            // What comes after the user gave up may have been done before what was asked for since.
            let heard = answer.as_ref().filter(|_| !one.given_up);
            let is_refused = answer.as_ref().is_some_and(|(status, _)| (300..500).contains(status));
            if !(one.given_up && is_refused) {
                let wish = self.users.wishes.entry(one.app).or_default();
                *wish = after(*wish, &one.wanted, heard);
            }
            let status = answer.as_ref().map(|(status, _)| *status);
            if !one.given_up && status.is_some_and(|status| status < 300) {
                self.users.n_acknowledged += 1;
            }
            self.note(&format!("{:?} of {} is answered with {status:?}", one.wanted, one.app));
            if !is_over {
                one.given_up = true;
                self.users.asked.push(one);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_expected_and_what_may_have_been_done_is_not_denied() {
        let deploy = Wanted::Deploy { count: 2, mark: 1 };
        let done = (200, json!({"release": {"number": 7}}));
        let wish = after(Wish::default(), &deploy, Some(&done));
        let stored = App { release: 7, count: 2, removing: false, failed: None };
        assert_eq!(wish.differs(Some(&stored)), None);
        let given_up = App { release: 6, failed: Some(7), ..stored.clone() };
        assert_eq!(wish.differs(Some(&given_up)), None);
        let older = App { release: 6, ..stored.clone() };
        assert!(wish.differs(Some(&older)).is_some() && wish.differs(None).is_some());
        let unknown = after(wish, &deploy, None);
        assert!(unknown.differs(Some(&older)).is_none() && unknown.differs(None).is_none());
        let refused = after(wish, &Wanted::Remove, Some(&(409, Value::Null)));
        assert_eq!(refused, wish);
        let gone = after(wish, &Wanted::Remove, Some(&(204, Value::Null)));
        assert!(gone.differs(None).is_none() && gone.differs(Some(&stored)).is_some());
    }
}
