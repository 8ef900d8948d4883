use clap::{Args, Subcommand};
use serde_json::json;

use super::{Format, attach::SpecArgs, context, exit::Failure, output};
use crate::{
    attach::{Desired, Next},
    config::Options,
    model::VolumeId,
};

#[derive(Debug, Args)]
pub(super) struct PlanCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What `attachd attach` would do next
    Attach(SpecArgs),
    /// What `attachd detach` would do next
    Detach {
        /// The Cinder volume's id
        #[arg(value_name = "VOLUME")]
        volume: VolumeId,

        /// As `attachd detach --force`
        #[arg(long)]
        force: bool,
    },
}

impl PlanCommand {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let (desired, volume) = match &self.what {
            What::Attach(args) => {
                let spec = args.spec(options)?;
                let volume = spec.volume;
                (Desired::Attached(spec), volume)
            }
            What::Detach { volume, force } => (Desired::Detached { force: *force }, *volume),
        };
        let engine = context::engine(options)?;
        let plan = engine.plan(&desired, volume).await?;
        let next = match &plan.next {
            Next::Do(step) => json!({"do": step.to_string()}),
            Next::Wait(awaited) => json!({"wait": awaited.to_string()}),
            Next::Refuse(refusal) => {
                json!({"refuse": refusal.to_string(), "reason": refusal.reason()})
            }
            Next::Done => json!("done"),
        };
        let then: Vec<&str> = plan.then.iter().map(|phase| phase.words()).collect();
        let value = json!({"next": next, "why": plan.why, "then": then});
        output::print(format, &value, || plan.to_string())?;
        Ok(())
    }
}
