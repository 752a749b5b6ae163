//! Lists come as streams where the API server's store can do that, else in pages: the agent holds the same world either way.

use std::thread;

use policy_tests::cluster::{ApiServer, Options};
use serde_json::{Value, json};

use crate::setup::{A, B, Setup, from, namespace};

/// More than one page.
const POLICIES: usize = 520;

/// Lists of policies that the server has sent as streams; nobody but the agent asks for such.
fn streams(setup: &Setup) -> u64 {
    let metrics = setup.admin(|admin| admin.request("GET", "/metrics", None)).unwrap().text;
    let is_ours = |line: &&str| {
        line.starts_with("apiserver_watch_list_duration_seconds_count{")
            && line.contains("resource=\"networkpolicies\"")
    };
    metrics.lines().filter(is_ours).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// What the agent says of its policies and of the pods that they isolate.
fn world(setup: &mut Setup) -> [Value; 2] {
    setup.agent.wait().unwrap();
    ["policies", "endpoints"].map(|what| {
        let output = setup.agent.ctl(["get", what, "--output", "json"]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut told: Value = serde_json::from_slice(&output.stdout).unwrap();
        for endpoint in told["endpoints"].as_array_mut().into_iter().flatten() {
            // Of the rest slots and epochs tell how it came, not what it is.
            let keep = ["pod", "state", "ingressIsolatedBy", "egressIsolatedBy"];
            endpoint.as_object_mut().unwrap().retain(|field, _| keep.contains(&field.as_str()));
        }
        told
    })
}

/// The worlds that an agent holds at its start, and after it has missed some of the server's history.
fn worlds(streaming: bool) -> [[Value; 2]; 2] {
    let mut setup = Setup::on(Options { streaming, ..Options::default() });
    setup.pod("a", A);
    setup.pod("b", B);
    setup.apply(&from(&json!({"podSelector": {"matchLabels": {"app": "c"}}})));
    let many: Vec<Value> = (0..POLICIES)
        .map(|n| {
            let mut policy = from(&json!({"podSelector": {"matchLabels": {"app": format!("x{n}")}}}));
            policy["metadata"]["name"] = format!("many-{n}").into();
            policy
        })
        .collect();
    setup.admin(|admin| many.iter().for_each(|policy| drop(admin.create(policy).unwrap())));
    setup.agent.start().unwrap();
    setup.expect(false, "only others may");
    let first = world(&mut setup);

    setup.server(ApiServer::stop);
    setup.server(|api| api.compact()).unwrap();
    setup.server(ApiServer::restart).unwrap();
    // The agent may hear of these by its watch or by a new list.
    setup.admin(|admin| {
        many.iter().take(POLICIES / 2).for_each(|policy| admin.delete(policy).unwrap());
        drop(admin.apply(&namespace(&json!({"team": "b"}))).unwrap());
        drop(admin.apply(&from(&json!({"podSelector": {"matchLabels": {"app": "a"}}}))).unwrap());
    });
    setup.until_status(|status| status["sources"][0]["error"] == "", "connected again");
    setup.expect(true, "a may");
    let second = world(&mut setup);

    let paged = setup.agent.log().contains("the server streams no lists");
    let streams = streams(&setup);
    let log = setup.agent.log();
    assert_eq!((paged, streams > 0), (!streaming, streaming), "{streams} streams; log:\n{log}");
    [first, second]
}

#[test]
fn streams_and_pages_give_the_same_world() {
    let [streamed, paged] = thread::scope(|scope| {
        [true, false]
            .map(|streaming| scope.spawn(move || worlds(streaming)))
            .map(|thread| thread.join().unwrap())
    });
    for (streamed, paged) in streamed.iter().zip(&paged) {
        assert_eq!(streamed, paged);
        assert_eq!(streamed[1]["endpoints"].as_array().map(Vec::len), Some(2), "{streamed:?}");
        assert!(
            streamed[0]["policies"].as_array().is_some_and(|all| all.len() > POLICIES / 2),
            "{streamed:?}"
        );
    }
}
