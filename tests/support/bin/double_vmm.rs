//! A double of Firecracker, or of QEMU where its name says so: serves the API socket that its
//! command line names, answers as the real one does but for what the rules in its folder say, and
//! has a socket in that folder for its guest. See `tests::double`.

#[path = "double_vmm/answers.rs"]
mod answers;
#[path = "double_vmm/firecracker.rs"]
mod firecracker;
#[path = "double_vmm/qemu.rs"]
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
    // A VMM that never gets as far as its API socket has a rule of its own.
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
    let mut words = arguments.iter();
    words
        .find(|word| *word == "--api-sock" || *word == "-qmp")
        .and_then(|_| words.next())
        .and_then(|value| value.trim_start_matches("unix:").split(',').next())
        .expect("an API socket on the command line")
}
