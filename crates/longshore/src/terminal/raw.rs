//! The user's terminal: its size, and keys that come as they are pressed.

use std::sync::{Mutex, Once, PoisonError};

use longshore_api::links::TerminalSize;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use crate::failure::{Failure, Kind, OrFail as _};

/// How the terminal was, while it is not that.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether the standard input is a terminal.
pub fn is_terminal() -> bool {
    isatty(stdin())
}

/// The size of the user's terminal, on whichever stream it is.
pub fn size() -> TerminalSize {
    let sizes = [stdout(), stdin(), stderr()].into_iter().filter_map(|fd| tcgetwinsize(fd).ok());
    let mut known = sizes.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    known.next().map_or_else(TerminalSize::default, |size| TerminalSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// Keys come as they are pressed, and none of them means anything here, until this is dropped. A
/// panic gives the terminal back as well, before it is told.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    pub fn enter() -> Result<Self, Failure> {
        static HOOK: Once = Once::new();
        let doing = "cannot change the terminal";
        let before = tcgetattr(stdin()).or_fail(Kind::Other, doing)?;
        let mut raw = before.clone();
        raw.make_raw();
        HOOK.call_once(|| {
            let told = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                told(panic);
            }));
        });
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let entered = Self(());
        tcsetattr(stdin(), OptionalActions::Now, &raw).or_fail(Kind::Other, doing)?;
        Ok(entered)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}
