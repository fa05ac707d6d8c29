//! A fake Firecracker, or QEMU when it is started by that name: it serves the API socket that its
//! command line names, answers as the real one does except where the rules in its folder say
//! otherwise, and has its guest's vsock socket in that folder. See `tests::host`.

mod answers;
mod firecracker;
mod qemu;

use std::env;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;

use answers::Script;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let is_qemu = arguments[0].ends_with("qemu");
    if arguments.iter().any(|argument| argument == "--version") {
        answers::print(match is_qemu {
            true => "QEMU emulator version 7.2.0\n",
            false => "Firecracker v1.16.1\n",
        });
        return ExitCode::SUCCESS;
    }
    let (end, ended) = mpsc::channel();
    let script = Arc::new(Script::open(end));
    // Rules for a VMM that fails before its API socket is there.
    let socket = script.begin().then(|| api_socket(&arguments));
    if let Some(socket) = socket {
        let listener = UnixListener::bind(socket).expect("a free path");
        let machine = Arc::default();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (script, machine) = (Arc::clone(&script), Arc::clone(&machine));
                let stream = stream.expect("a connection");
                thread::spawn(move || match is_qemu {
                    true => qemu::serve(stream, &script, &machine),
                    false => firecracker::serve(stream, &script, &machine),
                });
            }
        });
    }
    ended.recv().map_or(ExitCode::FAILURE, ExitCode::from)
}

/// `--api-sock PATH`, or `-qmp unix:PATH,…`.
fn api_socket(arguments: &[String]) -> &str {
    let mut args = arguments.iter();
    args.find(|word| *word == "--api-sock" || *word == "-qmp")
        .and_then(|_| args.next())
        .and_then(|value| value.trim_start_matches("unix:").split(',').next())
        .expect("an API socket on the command line")
}
