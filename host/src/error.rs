//! The error that leaves a command: its exit code and its message for the user.

use std::error::Error;
use std::fmt;

use crate::exit::Exit;

#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    error: Box<dyn Error + Send + Sync>,
    /// More lines for people, such as the end of a log; control characters are escaped already.
    details: Option<String>,
}

impl Failure {
    /// A failure with this meaning. A text is an error, too.
    pub(crate) fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit,
            error: error.into(),
            details: None,
        }
    }

    /// A wrong command line.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text.into())
    }

    /// What it means for the exit code.
    pub(crate) const fn exit(&self) -> Exit {
        self.exit
    }

    /// Further lines for people.
    pub(crate) fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }

    /// Adds further lines for people.
    pub(crate) fn with_details(mut self, details: Option<String>) -> Self {
        self.details = details.or(self.details);
        self
    }

    /// Puts the phase in front of the message.
    pub(crate) fn in_phase(self, phase: &str) -> Self {
        self.context(format!("{phase} failed"))
    }

    /// Puts a sentence in front of the message.
    pub(crate) fn context(self, text: String) -> Self {
        let context = Context {
            text,
            source: self.error,
        };
        Self {
            error: Box::new(context),
            ..self
        }
    }

    /// Replaces the meaning.
    pub(crate) const fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

impl fmt::Display for Failure {
    /// The error and its causes on one line, from the outermost to the root.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        let mut source = self.error.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl Error for Failure {}

/// An error behind a sentence that says what was attempted on what.
#[derive(Debug)]
pub(crate) struct Context {
    text: String,
    source: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Context {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Adds to an error what was attempted, and its exit code.
pub(crate) trait FailureContext<T> {
    /// Turns the error into a failure. `text` is called only if there is one.
    fn or_fail(self, exit: Exit, text: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> FailureContext<T> for Result<T, E> {
    fn or_fail(self, exit: Exit, text: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|source| {
            let context = Context {
                text: text(),
                source: source.into(),
            };
            Failure::new(exit, context)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn the_chain_is_one_line_from_outside_to_the_root() {
        let result: Result<(), _> = Err(io::Error::from_raw_os_error(2));
        let failure = result
            .or_fail(Exit::Artifact, || "cannot open a/manifest.json".to_owned())
            .unwrap_err();
        let text = "cannot open a/manifest.json: No such file or directory (os error 2)";
        assert_eq!(failure.to_string(), text);
        assert_eq!(failure.exit(), Exit::Artifact);
    }
}
