//! The socket's life, and health as `hubble status` asks for it.

use super::*;
use crate::api::fake::{Fake, Running, directory};
use crate::ctl::client::connect;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = directory();
    let path = dir.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let running = Running::start(dir.path(), Fake::default(), Bus::new(8, 8));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    let error = Socket::bind(&path).unwrap_err().to_string();
    assert!(error.contains("another process serves"), "{error}");
    running.stop().await;
    assert!(!path.exists(), "the socket goes with its server");
}

#[tokio::test]
async fn nothing_but_a_socket_is_removed() {
    let dir = directory();
    let path = dir.path().join("agent.sock");
    fs::write(&path, "precious").unwrap();
    let error = Socket::bind(&path).unwrap_err().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_successors_socket_stays() {
    let dir = directory();
    let running = Running::start(dir.path(), Fake::default(), Bus::new(8, 8));
    let path = running.path.clone();
    fs::remove_file(&path).unwrap();
    let successor = Socket::bind(&path).unwrap();
    running.stop().await;
    assert!(path.exists());
    drop(successor);
}

#[tokio::test]
async fn health_has_hubbles_name() {
    let dir = directory();
    let running = Running::start(dir.path(), Fake::default(), Bus::new(8, 8));
    let mut client = HealthClient::new(connect(&running.path).await.unwrap());
    let request = HealthCheckRequest { service: "hubble.server.Observer".into() };
    let status = client.check(request).await.unwrap().into_inner().status();
    assert_eq!(status, ServingStatus::Serving);
    drop(client);
    running.stop().await;
}
