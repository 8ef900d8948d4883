//! What was logged, and all that an error can show.
#![allow(clippy::unwrap_used)]
// Each test program uses a part of it.
#![allow(dead_code)]

use std::{
    error::Error,
    io,
    sync::{Arc, Mutex},
};

/// A log that keeps what is written to it; clones share it.
#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error and its causes, in every form.
pub fn show<E: Error>(error: &E) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(next) = source {
        text = format!("{text} {next} {next:?}");
        source = next.source();
    }
    text
}
