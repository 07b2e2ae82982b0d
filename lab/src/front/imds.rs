//! The instance metadata service, version 2, and version 1 where an instance allows it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;

use crate::cloud::{CloudHandle, Ec2Error, Reply};

use super::connection::{Fate, answer, serve};

const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// IMDS gives sessions of one second to six hours.
const TTL: std::ops::RangeInclusive<u64> = 1..=21_600;
/// Sessions remembered; the ones that end first are forgotten first.
const MOST_SESSIONS: usize = 4096;

/// Serves the metadata of `instance_id` on `listener`, for ever.
pub async fn serve_imds(listener: TcpListener, cloud: CloudHandle, instance_id: String) -> Infallible {
    let imds = Arc::new(Imds { cloud, instance_id, sessions: Mutex::default() });
    serve(listener, move |request| {
        let imds = imds.clone();
        async move { imds.respond(request).await }
    })
    .await
}

struct Imds {
    cloud: CloudHandle,
    instance_id: String,
    /// Token to the time since the world began at which it ends.
    sessions: Mutex<BTreeMap<String, Duration>>,
}

impl Imds {
    async fn respond(&self, request: Request<Bytes>) -> Fate {
        let summary = format!("{} {}", request.method(), request.uri().path());
        let admission = self.cloud.with(|cloud, now| cloud.admit_imds(now, &self.instance_id, summary));
        let decided = self.decide(&request);
        let instance_id = self.instance_id.clone();
        let reply = self
            .cloud
            .see_through(admission, move |cloud, now| match decided? {
                Decided::Read(path) => Ok((cloud.imds_get(now, &instance_id, &path)?, None)),
                Decided::Session { token, ttl } => Ok((token, Some(ttl))),
            })
            .await;
        match reply {
            Reply::Closed => Fate::Close,
            Reply::Never => Fate::Silence,
            Reply::Answer(Ok((body, ttl))) => {
                let mut response = plain(StatusCode::OK, body);
                if let Some(ttl) = ttl {
                    response.headers_mut().insert(TOKEN_TTL, HeaderValue::from(ttl));
                }
                Fate::Answer(response)
            }
            Reply::Answer(Err(error)) => {
                let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST);
                Fate::Answer(plain(status, error_page(&error)))
            }
        }
    }

    /// What to do with a request, before any of it is done.
    fn decide(&self, request: &Request<Bytes>) -> Result<Decided, Ec2Error> {
        let header = |name: &str| request.headers().get(name).and_then(|it| it.to_str().ok());
        let path = request.uri().path();
        if path == TOKEN_PATH && request.method() == Method::PUT {
            // A proxy in between means that the request is not the instance's own.
            if header("x-forwarded-for").is_some() {
                return Err(refuse(403, "Forbidden"));
            }
            let ttl = header(TOKEN_TTL).and_then(|it| it.parse().ok()).filter(|it| TTL.contains(it));
            let ttl = ttl.ok_or_else(|| refuse(400, "Bad Request"))?;
            return Ok(Decided::Session { token: self.open_session(ttl), ttl });
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(refuse(405, "Method Not Allowed"));
        }
        let is_let_in = match header(TOKEN) {
            Some(token) => self.session_is_open(token),
            None => self.cloud.snapshot().instances.get(&self.instance_id).is_some_and(|it| it.imds_v1),
        };
        if is_let_in { Ok(Decided::Read(path.to_owned())) } else { Err(refuse(401, "Unauthorized")) }
    }

    fn open_session(&self, ttl: u64) -> String {
        let (token, now) = self.cloud.with(|cloud, now| (cloud.imds_token(), now));
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, end| *end > now);
        if sessions.len() >= MOST_SESSIONS
            && let Some(first) = sessions.iter().min_by_key(|(_, end)| **end).map(|(token, _)| token.clone())
        {
            sessions.remove(&first);
        }
        sessions.insert(token.clone(), now + Duration::from_secs(ttl));
        token
    }

    fn session_is_open(&self, token: &str) -> bool {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(token).is_some_and(|end| *end > self.cloud.now())
    }
}

enum Decided {
    Read(String),
    Session { token: String, ttl: u64 },
}

fn refuse(status: u16, reason: &str) -> Ec2Error {
    Ec2Error { code: status.to_string().into(), message: reason.to_owned(), status }
}

fn plain(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let content_type = if status.is_success() { "text/plain" } else { "text/html" };
    let mut response = answer(status, content_type, body);
    response.headers_mut().insert("server", HeaderValue::from_static("EC2ws"));
    response
}

fn error_page(error: &Ec2Error) -> String {
    format!(
        "<html><head><title>{0} - {1}</title></head><body><h1>{0} - {1}</h1></body></html>",
        error.status, error.message
    )
}
