//! What the tests of the VMMs share: a machine, a state, and a scripted VMM.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use super::{MachineSpec, StateFiles};

/// A machine without drives and network.
pub(crate) fn machine() -> MachineSpec {
    MachineSpec {
        kernel: "/k".into(),
        initrd: "/i".into(),
        memory_mib: 256,
        vcpu_count: 2,
        drives: Vec::new(),
        nic: None,
        append: "agent.port=1".to_owned(),
        guest_cid: 3,
    }
}

/// The files of a Firecracker state.
pub(crate) fn state_files() -> StateFiles {
    StateFiles {
        state: "/s".into(),
        open_state: None,
        memory: Some("/m".into()),
        overrides_vsock: false,
        tap: None,
    }
}

/// A thread that plays the VMM at one end of a socket pair: it takes requests and sends prepared
/// answers, step by step.
#[derive(Debug)]
pub(crate) struct ScriptedVmm {
    thread: Option<JoinHandle<Vec<String>>>,
}

/// One step of the script.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Reads one HTTP request.
    TakeRequest,
    /// Reads one line.
    TakeLine,
    /// Sends bytes in one piece.
    Send(Vec<u8>),
    /// Sends bytes one at a time.
    Trickle(Vec<u8>),
    /// Waits until the client hangs up.
    AwaitHangup,
}

impl Step {
    pub(crate) fn send(bytes: impl AsRef<[u8]>) -> Self {
        Self::Send(bytes.as_ref().to_vec())
    }

    pub(crate) fn trickle(bytes: impl AsRef<[u8]>) -> Self {
        Self::Trickle(bytes.as_ref().to_vec())
    }
}

impl ScriptedVmm {
    /// Starts the script. After its last step the VMM hangs up.
    pub(crate) fn start(steps: Vec<Step>) -> (UnixStream, Self) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("a non-blocking end");
        let thread = Some(thread::spawn(move || play(theirs, &steps)));
        (ours, Self { thread })
    }

    /// The requests that were taken. If the script awaits a hangup, drop the client first.
    pub(crate) fn taken(mut self) -> Vec<String> {
        let thread = self.thread.take().expect("joined once");
        thread.join().expect("the script ran to its end")
    }
}

fn play(mut stream: UnixStream, steps: &[Step]) -> Vec<String> {
    let mut reader = BufReader::new(stream.try_clone().expect("a second descriptor"));
    let mut taken = Vec::new();
    for step in steps {
        // The client may hang up at any time; the remaining steps then do nothing.
        let _ = match step {
            Step::TakeRequest => take_request(&mut reader).map(|request| taken.push(request)),
            Step::TakeLine => {
                let mut line = String::new();
                reader
                    .read_line(&mut line)
                    .map(|_| taken.push(line.trim_end().to_owned()))
            }
            Step::Send(bytes) => stream.write_all(bytes),
            Step::Trickle(bytes) => bytes.iter().try_for_each(|byte| stream.write_all(&[*byte])),
            Step::AwaitHangup => io::copy(&mut reader, &mut io::sink()).map(drop),
        };
    }
    taken
}

/// Reads a request and returns its method, path and body, separated by blanks.
fn take_request(reader: &mut impl BufRead) -> io::Result<String> {
    let mut request_line = String::new();
    reader.read_line(&mut request_line)?;
    let mut content_len = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim_end().is_empty() {
            break;
        }
        if let Some(len) = header.strip_prefix("Content-Length: ") {
            content_len = len.trim_end().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; content_len];
    reader.read_exact(&mut body)?;
    let line = request_line.trim_end().trim_end_matches(" HTTP/1.1");
    Ok(format!("{line} {}", String::from_utf8_lossy(&body))
        .trim_end()
        .to_owned())
}
