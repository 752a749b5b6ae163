//! `policyctl wait`: until the kernel enforces what the sources hold, or what is missing.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use policy_engine::model::ObjectKey;
use tokio::time::{Instant, sleep, timeout_at};

use crate::api::json;
use crate::ctl::args::{TextForm, WaitArgs};
use crate::ctl::client;
use crate::ctl::failure::{Failure, NOT_MET};
use crate::ctl::screen::{Screen, plain};
use crate::proto::agent::{WaitRequest, WaitResponse};

/// Pause between two tries to reach the agent.
const PAUSE: Duration = Duration::from_millis(100);

/// Time that the agent gets beyond the limit to say what is missing, on a machine that is busy.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// With [`NOT_MET`] as exit code if something is missing in the end; otherwise when the socket cannot be used or the output
/// cannot be written.
pub async fn run(socket: &Path, args: &WaitArgs, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let pod = args.pod.as_ref();
    let answer = ask(socket, pod, Instant::now() + args.timeout).await?;
    match args.output {
        TextForm::Json => writeln!(screen.out, "{}", json::full("policyagent.v1.WaitResponse", &answer)?)?,
        TextForm::Text if answer.done => writeln!(screen.out, "enforced (plan {})", answer.enforcement)?,
        TextForm::Text => {}
    }
    if answer.done {
        return Ok(());
    }
    let what = pod.map_or_else(|| "not everything is".to_owned(), |pod| format!("pod {pod} is not"));
    let mut message = format!("{what} enforced after {:?}", args.timeout);
    for missing in &answer.missing {
        message.push_str(&format!("\n  {}", plain(missing)));
    }
    Err(Failure {
        exit: NOT_MET,
        ..Failure::new(message).hint("policyctl status and policyctl get endpoints tell more")
    })
}

/// Asks until the deadline; an agent that is not there yet, or restarts, is tried again.
async fn ask(socket: &Path, pod: Option<&ObjectKey>, deadline: Instant) -> Result<WaitResponse, Failure> {
    loop {
        let why = match timeout_at(deadline + GRACE, once(socket, pod, deadline)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(failure)) => failure.message,
            Err(_) => format!("the agent at {} does not answer", socket.display()),
        };
        if Instant::now() + PAUSE >= deadline {
            return Ok(WaitResponse { done: false, enforcement: 0, missing: vec![why] });
        }
        sleep(PAUSE).await;
    }
}

async fn once(socket: &Path, pod: Option<&ObjectKey>, deadline: Instant) -> Result<WaitResponse, Failure> {
    let mut client = client::agent(socket).await?;
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let (namespace, pod) =
        pod.map(|pod| (pod.namespace.to_string(), pod.name.to_string())).unwrap_or_default();
    Ok(client.wait(WaitRequest { timeout_ms, namespace, pod }).await?.into_inner())
}
