use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use super::{Liveness, Readiness, Report, connections::Connections};
use crate::metrics::{self, Scrape};

/// Kubelet and a few scrapers need three.
const MOST_CONNECTIONS: usize = 64;

/// From accepting a connection to its end. A scrape takes 3 s where the node is slow.
const LIMIT: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";

/// What is served.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// `/livez`
    pub liveness: Liveness,
    /// `/readyz`
    pub readiness: Readiness,
    /// `/metrics`, of a program that measures something
    pub scrape: Option<Scrape>,
}

/// The HTTP server. Each connection serves one request and has one time limit.
pub struct Server {
    connections: Connections,
}

impl Server {
    /// Takes the address; nothing is answered yet.
    ///
    /// # Errors
    /// Somebody else listens there, or the node doesn't have that address.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (most, limit, open) = (MOST_CONNECTIONS, LIMIT, VecDeque::new());
        Ok(Self { connections: Connections { listener, most, limit, open } })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system doesn't say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.connections.listener.local_addr()
    }

    /// Answers until `stop` ends, and what was asked until then.
    pub async fn serve(
        self,
        endpoints: Endpoints,
        stop: impl Future<Output = ()> + Send + 'static,
    ) {
        let Endpoints { liveness, readiness, scrape } = endpoints;
        let paths = match scrape {
            Some(_) => "/livez, /readyz or /metrics",
            None => "/livez or /readyz",
        };
        let mut router = Router::new()
            .route("/livez", get(async move || probe(&liveness.report())))
            .route("/readyz", get(async move || probe(&readiness.report())))
            .fallback(async move || answer(StatusCode::NOT_FOUND, TEXT, format!("try {paths}\n")));
        if let Some(scrape) = scrape {
            router = router.route("/metrics", get(scraped).with_state(scrape));
        }
        let router = router.layer(map_response(last));
        // It never ends with an error, as its documentation says.
        let _ = axum::serve(self.connections, router).with_graceful_shutdown(stop).await;
    }
}

fn probe(report: &Report) -> Response {
    let status = if report.is_well() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    answer(status, TEXT, report.to_string())
}

async fn scraped(State(scrape): State<Scrape>) -> Response {
    match scrape.text().await {
        Ok(text) => answer(StatusCode::OK, metrics::CONTENT_TYPE, text),
        Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "can't be encoded\n".to_owned()),
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

/// Every answer is the last one of its connection: so a request's time limit is the connection's.
async fn last(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
