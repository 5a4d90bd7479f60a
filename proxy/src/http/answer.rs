//! From a request to its answer.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

use super::Outlook;
use crate::app::Event;
use crate::metrics::{render_gauges, render_process};
use crate::status::{NodeStatus, Role, Status};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What can be asked for.
#[derive(Clone, Copy)]
enum Page {
    Metrics,
    Live,
    Ready,
    Status,
    Cluster,
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Page::Metrics),
            "/livez" => Some(Page::Live),
            "/readyz" => Some(Page::Ready),
            "/status" => Some(Page::Status),
            "/cluster" => Some(Page::Cluster),
            _ => None,
        }
    }

    /// Makes the page. It may take a few milliseconds of a processor, and reads /proc for metrics.
    fn make(self, outlook: &dyn Outlook, metrics: &PrometheusHandle) -> Response<Full<Bytes>> {
        match self {
            Page::Live => response(StatusCode::OK, TEXT, "alive\n"),
            Page::Ready => match outlook.ready() {
                Ok(()) => response(StatusCode::OK, JSON, json!({"ready": true}).to_string()),
                Err(reasons) => {
                    let body = json!({"ready": false, "reasons": reasons}).to_string();
                    response(StatusCode::SERVICE_UNAVAILABLE, JSON, body)
                }
            },
            Page::Status => {
                let body = serde_json::to_string(&outlook.status()).expect("a status has only texts as keys");
                response(StatusCode::OK, JSON, body)
            }
            Page::Cluster => {
                let body = cluster(&outlook.status(), &outlook.events()).to_string();
                response(StatusCode::OK, JSON, body)
            }
            Page::Metrics => {
                outlook.publish_metrics();
                let mut text = metrics.render();
                render_gauges(&outlook.status(), &mut text);
                render_process(&mut text);
                response(StatusCode::OK, PROMETHEUS, text)
            }
        }
    }
}

/// The members in the words of Patroni's `GET /cluster`, and what has happened to them.
fn cluster(status: &Status, events: &[Event]) -> Value {
    let member = |node: &NodeStatus| {
        let (host, port) = node.address.rsplit_once(':').unwrap_or((&node.address, ""));
        let role = if node.role == Role::Primary {
            "leader"
        } else {
            "replica"
        };
        let state = match node.role {
            Role::Primary => "running",
            Role::Standby => "streaming",
            Role::Unknown if node.up => "running",
            Role::Unknown => "stopped",
        };
        let mut member = json!({
            "name": node.name,
            "role": role,
            "state": state,
            "host": host,
            "port": port.parse::<u16>().ok(),
            "timeline": node.timeline,
        });
        if role == "replica" {
            member["lag"] = node
                .lag_bytes
                .map_or_else(|| json!("unknown"), |bytes| json!(bytes));
        }
        member
    };
    let event = |event: &Event| {
        let since = event
            .at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        json!({
            "number": event.number,
            "at": since.as_secs_f64(),
            "kind": event.kind,
            "node": event.node,
            "what": event.what,
            "epoch": event.epoch,
        })
    };
    json!({
        "members": status.nodes.iter().map(member).collect::<Vec<_>>(),
        "topology": status.topology,
        "epoch": status.epoch,
        "events": events.iter().map(event).collect::<Vec<_>>(),
    })
}

/// Answers one request. Cancel safe: nothing is kept between the answers.
pub(super) async fn answer<B: Body>(
    request: &Request<B>,
    outlook: Arc<dyn Outlook>,
    metrics: PrometheusHandle,
) -> Response<Full<Bytes>> {
    let Some(page) = Page::at(request.uri().path()) else {
        return response(
            StatusCode::NOT_FOUND,
            TEXT,
            "there are /metrics, /livez, /readyz, /status and /cluster\n",
        );
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    if !request.body().is_end_stream() {
        return response(
            StatusCode::PAYLOAD_TOO_LARGE,
            TEXT,
            "a request has no body here\n",
        );
    }
    if let Page::Live = page {
        // Not by way of the blocking threads: they may be busy, and the process lives all the same.
        return page.make(outlook.as_ref(), &metrics);
    }
    let made = tokio::task::spawn_blocking(move || page.make(outlook.as_ref(), &metrics));
    // A panic is logged by the hook; whoever asked is told that it is not their fault.
    made.await.unwrap_or_else(|_| {
        response(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            "this is a bug; the log has more\n",
        )
    })
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
