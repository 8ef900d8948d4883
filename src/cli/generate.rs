use std::{fs, io, path::PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, exit::Failure, output};
use crate::crd;

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
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "attachd", &mut script);
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
