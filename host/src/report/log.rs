//! The log on standard error.

use std::io::Write;

use log::LevelFilter;

use crate::values::without_controls;

/// Sends the log to standard error, one line per record, in the form of this program's messages.
pub(crate) fn start_log(quiet: bool, verbose: u8) {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, 2) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    };
    env_logger::Builder::new()
        .filter_level(level)
        .format(|out, record| {
            let level = record.level().as_str().to_lowercase();
            let text = without_controls(&record.args().to_string());
            writeln!(out, "host-tool: {level}: {text}")
        })
        .init();
}
