//! Plain requests to an API server, by curl: no library between the test and what the server says.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

/// What a request was answered with.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status; 0 when there was no answer.
    pub status: u16,
    /// The body; null when it is not JSON.
    pub body: Value,
    /// The body as it came.
    pub text: String,
}

impl Answer {
    /// The body of a success.
    ///
    /// # Errors
    /// The status is not 2xx.
    pub fn fine(self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "the API server answers {}: {}", self.status, self.text);
        Ok(self.body)
    }
}

/// Somebody who may ask an API server.
#[derive(Debug, Clone)]
pub struct Client {
    url: String,
    authority: PathBuf,
    token: String,
    namespace: Option<PathBuf>,
}

impl Client {
    /// A client with a bearer token that trusts the certificates in the file `authority`.
    pub fn new(url: &str, authority: &Path, token: &str) -> Self {
        Self {
            url: url.to_owned(),
            authority: authority.to_path_buf(),
            token: token.to_owned(),
            namespace: None,
        }
    }

    /// The same, asking from inside a network namespace, given as a path.
    pub fn inside(self, namespace: &Path) -> Self {
        Self { namespace: Some(namespace.to_path_buf()), ..self }
    }

    /// One request, and when the first line of its answer came.
    pub fn timed(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<(Answer, SystemTime)> {
        let (answer, log) = self.ask(&["--verbose", "--trace-time"], method, path, body)?;
        let line = log.lines().rfind(|line| line.contains(" < HTTP/")).context("curl saw no answer")?;
        Ok((answer, time_of_day(line.split(' ').next().unwrap_or_default())?))
    }

    /// One request. Without an answer the status is 0.
    pub fn request(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Answer> {
        Ok(self.ask(&[], method, path, body)?.0)
    }

    fn ask(
        &self,
        flags: &[&str],
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<(Answer, String)> {
        let mut curl = self.curl();
        curl.args(["--silent", "--show-error", "--max-time", "60", "--request", method, "--cacert"]);
        curl.arg(&self.authority).args(["--write-out", "\n%{http_code}", "--noproxy", "*"]);
        curl.arg("--header").arg(format!("Authorization: Bearer {}", self.token));
        if let Some((kind, _)) = body {
            curl.arg("--header").arg(format!("Content-Type: {kind}")).args(["--data-binary", "@-"]);
        }
        curl.args(flags).arg(format!("{}{path}", self.url)).env("TZ", "UTC");
        curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = curl.spawn().context("start curl\nhint: apt-get install curl")?;
        let mut input = child.stdin.take().context("curl has no stdin")?;
        if let Some((_, body)) = body {
            // A server that refuses the connection makes curl end before it reads.
            drop(input.write_all(body.to_string().as_bytes()));
        }
        drop(input);
        let output = child.wait_with_output().context("read what curl says")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let (text, status) = said.rsplit_once('\n').unwrap_or(("", "0"));
        let status = status.trim().parse().unwrap_or_default();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = if status == 0 { log.trim().to_owned() } else { text.to_owned() };
        let answer = Answer { status, body: serde_json::from_str(&text).unwrap_or_default(), text };
        Ok((answer, log))
    }

    /// `curl`, where the client asks from.
    fn curl(&self) -> Command {
        match &self.namespace {
            Some(path) => {
                let mut nsenter = Command::new("nsenter");
                nsenter.arg(format!("--net={}", path.display())).arg("curl");
                nsenter
            }
            None => Command::new("curl"),
        }
    }

    /// Watches a path, with the objects that there are first: one event a line on the child's output, until it is ended.
    pub fn watch(&self, path: &str) -> Result<Child> {
        let mut curl = self.curl();
        curl.args(["--silent", "--no-buffer", "--noproxy", "*", "--cacert"]).arg(&self.authority);
        curl.arg("--header").arg(format!("Authorization: Bearer {}", self.token));
        curl.arg(format!("{}{path}?watch=true&resourceVersion=0", self.url));
        curl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        curl.spawn().context("start curl\nhint: apt-get install curl")
    }

    /// Changes objects at a steady pace, over one connection, until all are done or the child is ended. Each answer's status
    /// is a line of its output.
    pub fn merge_paced(&self, patches: &[Value], a_second: u32) -> Result<Child> {
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let mut config = String::new();
        for (number, patch) in patches.iter().enumerate() {
            if number > 0 {
                config.push_str("next\n");
            }
            let url = format!("{}{}", self.url, path(patch)?);
            let token = format!("Authorization: Bearer {}", self.token);
            for (option, value) in [
                ("url", url.as_str()),
                ("request", "PATCH"),
                ("cacert", &self.authority.display().to_string()),
                ("header", &token),
                ("header", "Content-Type: application/merge-patch+json"),
                ("data-binary", &patch.to_string()),
                ("noproxy", "*"),
                ("output", "/dev/null"),
                ("write-out", "%{http_code}\\n"),
            ] {
                let value = if option == "write-out" { format!("\"{value}\"") } else { quoted(value) };
                config.push_str(&format!("{option} = {value}\n"));
            }
            config.push_str("silent\n");
        }
        let mut curl = Command::new("curl");
        curl.args(["--rate", &format!("{a_second}/s"), "--config", "-"]);
        curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = curl.spawn().context("start curl\nhint: apt-get install curl")?;
        let mut input = child.stdin.take().context("curl has no stdin")?;
        input.write_all(config.as_bytes()).context("tell curl what to do")?;
        Ok(child)
    }

    /// Reads a path.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request("GET", path, None)?.fine()
    }

    /// Creates an object.
    pub fn create(&self, object: &Value) -> Result<Value> {
        let path = collection(object)?;
        self.request("POST", &path, Some(("application/json", object)))?.fine()
    }

    /// Creates or changes an object, by server-side apply.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let path = format!("{}?fieldManager=test&force=true", path(object)?);
        self.request("PATCH", &path, Some(("application/apply-patch+yaml", object)))?.fine()
    }

    /// Changes the fields that `patch` has; its apiVersion, kind and metadata say of which object.
    pub fn merge(&self, patch: &Value) -> Result<Value> {
        self.request("PATCH", &path(patch)?, Some(("application/merge-patch+json", patch)))?.fine()
    }

    /// Changes an object's status.
    pub fn merge_status(&self, patch: &Value) -> Result<Value> {
        let path = format!("{}/status", path(patch)?);
        self.request("PATCH", &path, Some(("application/merge-patch+json", patch)))?.fine()
    }

    /// Creates or changes an object; tells when the server's answer came.
    pub fn apply_timed(&self, object: &Value) -> Result<SystemTime> {
        let path = format!("{}?fieldManager=test&force=true", path(object)?);
        let (answer, when) = self.timed("PATCH", &path, Some(("application/apply-patch+yaml", object)))?;
        answer.fine().map(|_| when)
    }

    /// Deletes an object; tells when the server's answer came.
    pub fn delete_timed(&self, object: &Value) -> Result<SystemTime> {
        let (answer, when) = self.timed("DELETE", &path(object)?, None)?;
        answer.fine().map(|_| when)
    }

    /// Deletes an object at once; one that is not there is no error.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let answer = self.request("DELETE", &format!("{}?gracePeriodSeconds=0", path(object)?), None)?;
        if answer.status == 404 { Ok(()) } else { answer.fine().map(drop) }
    }
}

/// The last moment that had this time of day in UTC, given as `12:34:56.123456`.
fn time_of_day(text: &str) -> Result<SystemTime> {
    const DAY: Duration = Duration::from_secs(86_400);
    let parts: Vec<f64> = text.split(':').map(str::parse).collect::<Result<_, _>>().context("no time")?;
    let &[hours, minutes, seconds] = parts.as_slice() else { bail!("{text} is no time") };
    let time = Duration::from_secs_f64(hours * 3600.0 + minutes * 60.0 + seconds);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("a clock before 1970")?;
    let midnight = Duration::from_secs(now.as_secs() / DAY.as_secs() * DAY.as_secs());
    let then = midnight + time;
    Ok(SystemTime::UNIX_EPOCH + if then > now + DAY / 2 { then - DAY } else { then })
}

/// The path of an object.
pub(super) fn path(object: &Value) -> Result<String> {
    let name = object["metadata"]["name"].as_str().context("an object without a name")?;
    Ok(format!("{}/{name}", collection(object)?))
}

/// The path of the objects of its kind in its namespace.
fn collection(object: &Value) -> Result<String> {
    let (Some(version), Some(kind)) = (object["apiVersion"].as_str(), object["kind"].as_str()) else {
        bail!("an object without apiVersion and kind: {object}");
    };
    let group = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let kind = kind.to_lowercase();
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind.ends_with('s') => format!("{kind}es"),
        None => format!("{kind}s"),
    };
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}"),
        None => format!("{group}/{plural}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_have_paths() {
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "p"}});
        assert_eq!(path(&policy).unwrap(), "/apis/networking.k8s.io/v1/namespaces/x/networkpolicies/p");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
        assert_eq!(path(&node).unwrap(), "/api/v1/nodes/n");
        assert!(path(&json!({"kind": "Node"})).is_err());
    }

    #[test]
    fn a_time_of_day_is_of_today_or_yesterday() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() % 86_400;
        let text = format!("{:02}:{:02}:{:02}.250000", now / 3600, now / 60 % 60, now % 60);
        let found = time_of_day(&text).unwrap();
        let away = SystemTime::now().duration_since(found).unwrap_or_else(|early| early.duration());
        assert!(away < Duration::from_secs(2), "{away:?}");
        assert!(time_of_day("12").is_err());
    }

    #[test]
    fn without_a_server_the_status_is_zero() {
        let client = Client::new("https://127.0.0.1:9", Path::new("/dev/null"), "t");
        assert_eq!(client.request("GET", "/", None).unwrap().status, 0);
    }
}
