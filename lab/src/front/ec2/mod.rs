//! EC2's Query protocol: form-encoded requests, XML answers.

mod params;
mod render;
mod request;
#[cfg(test)]
mod tests;
mod xml;

use std::convert::Infallible;

use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;

use crate::cloud::{Caller, CloudHandle, Ec2Error, Reply};

use super::connection::{Fate, answer, serve};
use params::Params;

/// Serves EC2 on `listener`, for ever.
pub async fn serve_ec2(listener: TcpListener, cloud: CloudHandle) -> Infallible {
    serve(listener, move |request| {
        let cloud = cloud.clone();
        async move { respond(&cloud, &request).await }
    })
    .await
}

async fn respond(cloud: &CloudHandle, request: &Request<Bytes>) -> Fate {
    let (summary, action, typed) = match Params::read(request) {
        Ok(params) => {
            let action = params.action().unwrap_or("").to_owned();
            (params.summary(), action, request::typed(&params))
        }
        Err(unreadable) => (String::new(), String::new(), Err(unreadable)),
    };
    let (caller, typed) = match caller(cloud, request) {
        Ok(caller) => (caller, typed),
        Err(refused) => (Caller::default(), Err(refused)),
    };
    match cloud.call(caller, action.clone(), typed, summary).await {
        Reply::Closed => Fate::Close,
        Reply::Never => Fate::Silence,
        Reply::Answer((id, result)) => {
            let (status, body) = match result {
                Ok(response) => {
                    (StatusCode::OK, cloud.with(|it, _| render::success(it, &action, &id, &response)))
                }
                Err(error) => (
                    StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST),
                    render::failure(&id, &error),
                ),
            };
            Fate::Answer(answer(status, "text/xml;charset=UTF-8", body))
        }
    }
}

/// Who signed the request, by its `Authorization` header of signature version 4. The signature
/// itself is not checked: the world knows keys, not secrets.
fn caller(cloud: &CloudHandle, request: &Request<Bytes>) -> Result<Caller, Ec2Error> {
    let header = |name: &str| request.headers().get(name).and_then(|it| it.to_str().ok());
    let Some(authorization) = header("authorization") else { return Ok(Caller::default()) };
    let scope = authorization
        .strip_prefix("AWS4-HMAC-SHA256 ")
        .filter(|it| it.contains("SignedHeaders=") && it.contains("Signature="))
        .and_then(|it| it.split([',', ' ']).find_map(|part| part.strip_prefix("Credential=")))
        .ok_or_else(|| {
            Ec2Error::new("IncompleteSignature", "The Authorization header is not of signature version 4")
        })?;
    let parts: Vec<&str> = scope.split('/').collect();
    let [access_key, _date, region, "ec2", "aws4_request"] = parts.as_slice() else {
        return Err(Ec2Error::new(
            "IncompleteSignature",
            format!("The credential scope '{scope}' is not KEY/DATE/REGION/ec2/aws4_request"),
        ));
    };
    if *region != cloud.snapshot().region {
        return Err(Ec2Error::new(
            "AuthFailure",
            format!("Credential should be scoped to a valid region, not '{region}'."),
        ));
    }
    let token = header("x-amz-security-token").map(str::to_owned);
    Ok(Caller { access_key: Some((*access_key).to_owned()), token })
}
