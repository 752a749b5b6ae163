//! What can go wrong with the API server, in words that say what to do about it.

use std::error::Error as StdError;
use std::fmt;

use kube::Error;
use kube::core::Status;

use super::kind::Kind;
use crate::cli::chain;

/// What was asked of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// `list`, `watch`, `discover` or `create`.
    pub verb: &'static str,
    /// The resource.
    pub resource: &'static str,
    /// Its API group.
    pub group: &'static str,
}

impl Request {
    pub(super) const fn list(kind: Kind) -> Self {
        Self { verb: "list", resource: kind.resource(), group: kind.group() }
    }

    pub(super) const fn watch(kind: Kind) -> Self {
        Self { verb: "watch", resource: kind.resource(), group: kind.group() }
    }

    /// The rule that a ClusterRole must have.
    fn rule(self) -> String {
        format!(
            "{{apiGroups: [\"{}\"], resources: [\"{}\"], verbs: [\"{}\"]}}",
            self.group, self.resource, self.verb
        )
    }
}

/// What sort of fault it is: it decides what is tried next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The version to go on from is too old: a full list is needed.
    Expired,
    /// The server does not do this, and will not if it is asked again.
    Unsupported,
    /// The server does not have it.
    Absent,
    /// Something of that name is there already.
    Exists,
    /// Anything else: it may work later.
    Later,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// What happened, with its causes.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What sort it is.
    pub class: Class,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl Fault {
    /// A fault that may pass.
    pub(super) fn later(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, class: Class::Later }
    }

    /// What the client says about a request.
    pub(super) fn of(request: Request, error: &Error) -> Self {
        match error {
            Error::Api(status) => Self::answered(request, status),
            Error::Auth(e) => Self {
                message: format!("no credentials for the API server: {}", chain(e)),
                hint: Some("check the user of the kubeconfig, or the ServiceAccount's token".to_owned()),
                class: Class::Later,
            },
            Error::Service(e) => Self::unreachable(e.as_ref()),
            Error::HyperError(e) => Self::unreachable(e),
            Error::ReadEvents(e) => Self::unreachable(e),
            other => Self::later(format!("{} {}: {}", request.verb, request.resource, chain(other))),
        }
    }

    /// What the API server answered.
    pub(super) fn answered(request: Request, status: &Status) -> Self {
        let Request { verb, resource, .. } = request;
        let said = if status.message.is_empty() { &status.reason } else { &status.message };
        let (message, hint, class) = match status.code {
            401 => (
                format!("the API server does not accept the agent's credentials (401): {said}"),
                Some("the token is wrong or has expired: renew the kubeconfig, or mount a current ServiceAccount token".to_owned()),
                Class::Later,
            ),
            403 => (
                format!("the API server forbids to {verb} {resource} (403): {said}"),
                Some(format!("the agent's ClusterRole needs the rule {}, and a ClusterRoleBinding to the agent's account", request.rule())),
                Class::Later,
            ),
            404 if verb != "create" => (
                format!("the API server does not serve {resource} (404): {said}"),
                Some("check that the address of the kubeconfig is an API server's".to_owned()),
                Class::Absent,
            ),
            409 if status.reason == "AlreadyExists" => (said.clone(), None, Class::Exists),
            410 => (format!("the API server no longer has the changes of {resource} since the last one seen (410)"), None, Class::Expired),
            400 | 422 => (format!("the API server refuses to {verb} {resource} ({}): {said}", status.code), None, Class::Unsupported),
            code => (format!("the API server cannot {verb} {resource} ({code}): {said}"), None, Class::Later),
        };
        Self { message, hint, class }
    }

    fn unreachable(error: &(dyn StdError + 'static)) -> Self {
        let text = chain(error);
        let hint = if text.contains("certificate") || text.contains("UnknownIssuer") {
            "check certificate-authority of the kubeconfig, and that the server's certificate names its address"
        } else {
            "is it running, and can this node reach its address? What is enforced stays in force"
        };
        Self {
            message: format!("the API server cannot be reached: {text}"),
            hint: Some(hint.to_owned()),
            class: Class::Later,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, reason: &str, message: &str) -> Status {
        Status { code, reason: reason.to_owned(), message: message.to_owned(), ..Status::default() }
    }

    #[test]
    fn a_missing_permission_names_the_rule() {
        let told = Fault::answered(
            Request::watch(Kind::Policy),
            &status(403, "Forbidden", "networkpolicies.networking.k8s.io is forbidden"),
        );
        assert_eq!(told.class, Class::Later);
        let text = told.to_string();
        assert!(text.contains("forbids to watch networkpolicies (403)"), "{text}");
        let rule =
            "{apiGroups: [\"networking.k8s.io\"], resources: [\"networkpolicies\"], verbs: [\"watch\"]}";
        assert!(text.contains(rule), "{text}");
    }

    #[test]
    fn answers_decide_what_comes_next() {
        let class =
            |code, reason| Fault::answered(Request::list(Kind::Pod), &status(code, reason, "x")).class;
        assert_eq!(class(410, "Expired"), Class::Expired);
        assert_eq!(class(422, "Invalid"), Class::Unsupported);
        assert_eq!(class(409, "AlreadyExists"), Class::Exists);
        assert_eq!(class(404, "NotFound"), Class::Absent);
        for code in [401, 403, 429, 500, 503] {
            assert_eq!(class(code, "x"), Class::Later, "{code}");
        }
    }
}
