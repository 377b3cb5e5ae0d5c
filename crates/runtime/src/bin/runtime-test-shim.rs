//! The shim program of this crate's tests: `longshore` without anything else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|verb| verb.to_str()) {
        Some("shim") => longshore_runtime::shim_main(args),
        Some("shim-exec") => longshore_runtime::exec_main(args),
        Some("shim-archive") => longshore_runtime::archive_main(args),
        _ => {
            eprintln!("this program is run by tests only");
            ExitCode::FAILURE
        }
    }
}
