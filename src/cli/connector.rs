use clap::Args;

use super::{Format, context, exit::Failure, output};
use crate::{config::Options, host::Host as _};

#[derive(Debug, Args)]
pub(super) struct ConnectorCommand {}

impl ConnectorCommand {
    pub(super) async fn run(&self, options: &Options, format: Format) -> Result<(), Failure> {
        let connector = context::host(options)?.facts().await?.connector;
        let value = serde_json::to_value(&connector).map_err(std::io::Error::other)?;
        output::print(format, &value, || {
            let rows = value.as_object().into_iter().flatten().map(|(key, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
                [key.clone(), text]
            });
            output::table(["FACT", "VALUE"], rows)
        })?;
        Ok(())
    }
}
