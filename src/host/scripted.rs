//! A stand-in for the host's programs: a strict transcript of what must be run, and what comes back.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use super::{
    HostError,
    exec::{Command, Executor, Exit, Output},
};

/// Answers commands from a transcript. Panics, as a test fails, at a command that isn't the next one
/// of the transcript, and when it is dropped before the transcript's end.
pub struct ScriptedExecutor {
    lines: Mutex<VecDeque<(String, Output)>>,
    effect: Effect,
}

/// What a command does to the node, beside what it prints.
type Effect = Box<dyn Fn(&str) + Send + Sync>;

impl std::fmt::Debug for ScriptedExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedExecutor").field("lines", &self.lines).finish_non_exhaustive()
    }
}

impl ScriptedExecutor {
    /// A transcript: argv (separated by spaces), then how the program ended and what it printed.
    /// Output of a command that failed goes to stderr, of one that succeeded to stdout.
    pub fn new(lines: &[(&str, i32, &str)]) -> Self {
        let lines = lines
            .iter()
            .map(|(argv, code, text)| {
                let (stdout, stderr) = if *code == 0 { (*text, "") } else { ("", *text) };
                let output = Output {
                    exit: Exit::Code(*code),
                    stdout: stdout.to_owned(),
                    stderr: stderr.to_owned(),
                };
                ((*argv).to_owned(), output)
            })
            .collect();
        Self { lines: Mutex::new(lines), effect: Box::new(|_| ()) }
    }

    /// The same, and each command that is run (its argv) has an effect as well.
    #[must_use]
    pub fn with_effect(mut self, effect: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.effect = Box::new(effect);
        self
    }
}

impl Executor for ScriptedExecutor {
    async fn run(&self, command: Command) -> Result<Output, HostError> {
        let next = self.lines.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match next {
            Some((argv, output)) => {
                assert_eq!(command.to_string(), argv, "not the transcript's next command");
                (self.effect)(&argv);
                Ok(output)
            }
            None => panic!("the transcript has ended, but this was run: {command}"),
        }
    }
}

impl Drop for ScriptedExecutor {
    fn drop(&mut self) {
        let left = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "never run: {left:?}");
        }
    }
}
