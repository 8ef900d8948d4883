use std::{fs, io, path::PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, env::Shells};

use super::{Cli, exit::Failure, output};
use crate::crd;

/// The variable by which a shell's script asks for completions. A name of its own: a `COMPLETE` that
/// somebody set for another program must not keep a daemon from starting.
pub(super) const COMPLETE: &str = "ATTACHD_COMPLETE";

#[derive(Debug, Args)]
pub(super) struct Crd {
    /// Write a file for each of them here instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Crd {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let manifests = crd::manifests().map_err(io::Error::other)?;
        let Some(dir) = &self.dir else {
            let documents: Vec<String> = manifests.into_iter().map(|(_, text)| text).collect();
            return Ok(output::write(&documents.join("---\n"))?);
        };
        fs::create_dir_all(dir)?;
        for (file, text) in manifests {
            fs::write(dir.join(file), text)?;
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// bash, elvish, fish, powershell or zsh
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let shells = Shells::builtins();
        let shell = shells.completer(&self.shell.to_string()).ok_or_else(|| {
            Failure::Usage(format!("there are no completions for {}", self.shell))
        })?;
        let mut script = Vec::new();
        shell.write_registration(COMPLETE, "attachd", "attachd", "attachd", &mut script)?;
        Ok(output::write(&String::from_utf8_lossy(&script))?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write attachd.1, attachd-attach.1, … here instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if let Some(dir) = &self.dir {
            fs::create_dir_all(dir)?;
            return Ok(clap_mangen::generate_to(Cli::command(), dir)?);
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        Ok(output::write(&String::from_utf8_lossy(&page))?)
    }
}
