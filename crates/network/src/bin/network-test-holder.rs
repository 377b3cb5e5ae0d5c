//! The program that makes the user namespaces of this crate's tests: `longshore` without anything
//! else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|verb| verb.to_str()) {
        Some(longshore_network::HOLD_NAMESPACES_VERB) => {
            longshore_network::hold_namespaces_main(args)
        }
        _ => {
            eprintln!("this program is run by tests only");
            ExitCode::FAILURE
        }
    }
}
