//! Logs: to standard error, as lines for people or as JSON.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::{Exit, Failure, LogFormat};

/// Libraries that tell more than anybody wants to know; a filter may name them all the same. What a request of `kube` ends
/// with is told by us, once.
const QUIET: &str = "aya=warn,aya_obj=warn,h2=warn,hyper=warn,hyper_util=warn,kube=off,rustls=warn,tonic=warn,tower=warn,notify=warn";

/// Starts logging.
///
/// # Errors
/// The filter cannot be read.
pub(super) fn start(filter: &str, format: LogFormat) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(format!("{QUIET},{filter}")).map_err(|e| {
        Failure::new(Exit::Usage, &e)
            .hint("--log takes a level (error, warn, info, debug, trace) or module=level,...")
    })?;
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    match format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
