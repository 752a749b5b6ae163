//! `policyctl monitor`: a client of the observer service that prints each event and outlives the agent.

mod dict;
mod line;
pub mod request;
mod show;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use prost_types::Timestamp;
use tokio::time::sleep;
use tonic::Code;

use crate::api::json;
use crate::ctl::args::{EventForm, MonitorArgs};
use crate::ctl::client;
use crate::ctl::failure::Failure;
use crate::ctl::screen::Screen;
use crate::events::Now;
use crate::events::clock::{nanoseconds, timestamp};
use crate::proto::observer::get_flows_response::ResponseTypes;
use crate::proto::observer::{GetFlowsRequest, GetFlowsResponse};

/// First pause before a new try to connect; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Runs the command: until interrupted, if it follows.
///
/// # Errors
/// When the agent cannot be reached at first, refuses the request, or the output cannot be written.
pub async fn run(socket: &Path, args: &MonitorArgs, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let now = Now::read()?.wall;
    let mut request = request::request(args, now);
    let mut seen = Seen { time: timestamp(now), uuids: HashSet::new() };
    let mut pause = None;
    loop {
        let ended = stream(socket, request.clone(), args.output, &mut seen, screen).await;
        let why = match ended {
            Ok(()) if !request.follow => return Ok(()),
            Ok(()) => "the agent ended".to_owned(),
            Err(Broken::Lost(why)) if request.follow => why,
            // The first connection must succeed: a wrong path should not wait for ever.
            Err(Broken::Unreachable(_)) if pause.is_some() => {
                pause = pause.map(|pause: Duration| (pause * 2).min(LONGEST_PAUSE));
                sleep(pause.unwrap_or(FIRST_PAUSE)).await;
                continue;
            }
            Err(Broken::Lost(why)) => {
                return Err(Failure::new(why).hint("is the agent still running?"));
            }
            Err(Broken::Unreachable(failure) | Broken::Final(failure)) => return Err(failure),
        };
        writeln!(screen.err, "warning: {why}; waiting for it at {}", socket.display())?;
        pause = Some(FIRST_PAUSE);
        request.number = 0;
        request.since = Some(seen.time);
        sleep(FIRST_PAUSE).await;
    }
}

/// Why a stream ended before its time.
enum Broken {
    /// Nobody answered.
    Unreachable(Failure),
    /// It had begun.
    Lost(String),
    /// A new try would end the same.
    Final(Failure),
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Final(error.into())
    }
}

/// The last events shown, so that a new stream can begin there without repeating any.
struct Seen {
    time: Timestamp,
    /// Those of exactly that time.
    uuids: HashSet<String>,
}

impl Seen {
    /// Whether the event is new; it is then remembered.
    fn is_new(&mut self, response: &GetFlowsResponse) -> bool {
        let (Some(ResponseTypes::Flow(flow)), Some(time)) = (&response.response_types, response.time) else {
            return true;
        };
        if nanoseconds(&time) > nanoseconds(&self.time) {
            self.uuids.clear();
            self.time = time;
        }
        time != self.time || self.uuids.insert(flow.uuid.clone())
    }
}

async fn stream(
    socket: &Path,
    request: GetFlowsRequest,
    form: EventForm,
    seen: &mut Seen,
    screen: &mut Screen<'_>,
) -> Result<(), Broken> {
    let again = request.follow && request.since == Some(seen.time);
    let mut client = client::observer(socket).await.map_err(Broken::Unreachable)?;
    let mut stream = client.get_flows(request).await.map_err(broken)?.into_inner();
    if again {
        writeln!(screen.err, "the agent is back")?;
    }
    while let Some(response) = stream.message().await.map_err(broken)? {
        if seen.is_new(&response) {
            show(&response, form, screen).map_err(Broken::Final)?;
        }
    }
    Ok(())
}

fn broken(status: tonic::Status) -> Broken {
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented | Code::PermissionDenied => Broken::Final(status.into()),
        _ => Broken::Lost("the connection to the agent broke".to_owned()),
    }
}

fn show(response: &GetFlowsResponse, form: EventForm, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let text = match form {
        EventForm::Line => line::line(response, screen.colour, &screen.zone),
        EventForm::Wide => line::wide(response, screen.colour, &screen.zone),
        EventForm::Dict => dict::dict(response, &screen.zone),
        EventForm::Json => Some(json::line(response)?),
    };
    if let Some(text) = text {
        writeln!(screen.out, "{text}")?;
        screen.out.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
