//! The authentication exchange with a client (manual, "Start-up" in "Message Flow").

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::startup::Authentication;

use super::client::{Client, Ended};
use crate::auth::scram::server::{Binding, Candidate, ClientFinalAwaited, ClientFirstAwaited};
use crate::auth::scram::{self, MECHANISM, MECHANISM_PLUS, ScramError};
use crate::auth::{Challenge, Credential, Md5Hash, ScramKeys, Standing, md5};
use crate::error::{Report, SqlState};
use crate::handshake::take_cstring;

/// Largest password or md5 answer taken: PostgreSQL's PG_MAX_AUTH_TOKEN_LENGTH. A SCRAM message has its own limit.
const PASSWORD_SIZE_MAX: usize = 65_535;
/// Mechanism, length and message of a SASLInitialResponse.
const SASL_INITIAL_SIZE_MAX: usize = 64 + scram::MESSAGE_SIZE_MAX;

/// Asks the challenge, with `pending` in front of it, and judges the answer: what may log in to the nodes. Afterwards
/// `pending` holds what the client has still to be told about it.
pub(super) async fn authenticate(
    client: &mut Client,
    user: &str,
    challenge: Challenge,
    end_point: Option<Arc<[u8]>>,
    pending: &mut BytesMut,
) -> Result<Credential, Ended> {
    match challenge {
        Challenge::Md5(hash, standing) => ask_md5(client, user, &hash, standing, pending).await,
        Challenge::Scram(candidate, standing) => {
            ask_scram(client, user, candidate, standing, end_point, pending).await
        }
    }
}

async fn ask_md5(
    client: &mut Client,
    user: &str,
    hash: &Md5Hash,
    standing: Standing,
    pending: &mut BytesMut,
) -> Result<Credential, Ended> {
    let salt = scram::random::<{ md5::SALT_SIZE }>();
    put(&Authentication::MD5Password(salt.to_vec()), pending);
    client.send(pending).await?;
    let mut body = client.answer("password", PASSWORD_SIZE_MAX).await?;
    let answer = take_cstring(&mut body).filter(|_| body.is_empty());
    let answer = answer.ok_or_else(|| violation("invalid password packet size", None))?;
    // Judged before the standing is looked at, so that nobody learns from the time taken.
    match (hash.accepts(salt, &answer), standing) {
        (true, Standing::Known(credential)) => Ok(credential),
        _ => Err(wrong_password(user).into()),
    }
}

async fn ask_scram(
    client: &mut Client,
    user: &str,
    candidate: Candidate,
    standing: Standing,
    end_point: Option<Arc<[u8]>>,
    pending: &mut BytesMut,
) -> Result<Credential, Ended> {
    let refuse = |error| refusal(user, error);
    let verifier = Arc::clone(&candidate.verifier);

    let mut mechanisms = vec![MECHANISM.to_owned()];
    if end_point.is_some() {
        mechanisms.insert(0, MECHANISM_PLUS.to_owned());
    }
    put(&Authentication::SASL(mechanisms), pending);
    client.send(pending).await?;

    let initial = client.answer("SASL", SASL_INITIAL_SIZE_MAX).await?;
    let (binding, client_first) = read_initial(initial, end_point)?;
    let start = ClientFirstAwaited::new(candidate, binding);
    let (server_first, next) = match client_first {
        Some(message) => start.client_first(&message, &scram::nonce()).map_err(refuse)?,
        None => {
            // The standard lets a client choose first and speak when asked: an empty challenge asks it.
            put(&Authentication::SASLContinue(Bytes::new()), pending);
            client.send(pending).await?;
            let message = client.answer("SASL", scram::MESSAGE_SIZE_MAX).await?;
            start.client_first(&message, &scram::nonce()).map_err(refuse)?
        }
    };
    let keys = finish_scram(client, next, server_first, pending)
        .await?
        .map_err(refuse)?;
    Ok(match standing {
        Standing::Known(Credential::None) => Credential::ScramKeys(Arc::new(ScramKeys {
            keys,
            salt: verifier.salt().to_vec(),
            iterations: verifier.iterations(),
        })),
        Standing::Known(credential) => credential,
        Standing::Unknown => Credential::None,
    })
}

async fn finish_scram(
    client: &mut Client,
    next: ClientFinalAwaited,
    server_first: Vec<u8>,
    pending: &mut BytesMut,
) -> Result<Result<scram::Keys, ScramError>, Ended> {
    put(&Authentication::SASLContinue(server_first.into()), pending);
    client.send(pending).await?;
    let client_final = client.answer("SASL", scram::MESSAGE_SIZE_MAX).await?;
    Ok(next.client_final(&client_final).map(|proved| {
        put(&Authentication::SASLFinal(proved.server_final.into()), pending);
        proved.keys
    }))
}

/// Reads a SASLInitialResponse: the mechanism chosen, and the message if one came with it.
fn read_initial(mut body: Bytes, end_point: Option<Arc<[u8]>>) -> Result<(Binding, Option<Bytes>), Report> {
    let malformed = || violation("malformed SASL initial response", None);
    let mechanism = take_cstring(&mut body).ok_or_else(malformed)?;
    let binding = match (&mechanism[..], end_point) {
        (name, Some(data)) if name == MECHANISM_PLUS.as_bytes() => Binding::EndPoint(data),
        (name, Some(_)) if name == MECHANISM.as_bytes() => Binding::Declined,
        (name, None) if name == MECHANISM.as_bytes() => Binding::NotOffered,
        _ => {
            return Err(violation(
                "client selected an invalid SASL authentication mechanism",
                None,
            ));
        }
    };
    let length = i32::from_be_bytes(*body.first_chunk().ok_or_else(malformed)?);
    drop(body.split_to(4));
    match usize::try_from(length) {
        Ok(length) if length == body.len() => Ok((binding, Some(body))),
        Err(_) if length == -1 && body.is_empty() => Ok((binding, None)),
        _ => Err(malformed()),
    }
}

/// What a client is told of a failed exchange. Whoever does not know the password learns no more than that.
fn refusal(user: &str, error: ScramError) -> Report {
    match error {
        ScramError::Malformed(detail) => violation("malformed SCRAM message", Some(detail)),
        ScramError::NonceMismatch => violation("invalid SCRAM response", Some("Nonce does not match.")),
        ScramError::Unsupported(detail) => {
            Report::fatal(SqlState::FEATURE_NOT_SUPPORTED, "SCRAM feature not supported").with_detail(detail)
        }
        ScramError::BindingDowngraded => Report::fatal(
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            "SCRAM channel binding negotiation error",
        )
        .with_detail(
            "The client supports SCRAM channel binding but thinks the server does not. However, this server does \
             support channel binding.",
        ),
        ScramError::BindingMismatch => Report::fatal(
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            "SCRAM channel binding check failed",
        ),
        // The last two are errors of the client's side of an exchange and do not come from ours.
        ScramError::WrongProof | ScramError::WrongServerSignature | ScramError::TooManyIterations => {
            wrong_password(user)
        }
    }
}

fn wrong_password(user: &str) -> Report {
    Report::fatal(
        SqlState::INVALID_PASSWORD,
        format!("password authentication failed for user \"{user}\""),
    )
}

fn violation(message: &'static str, detail: Option<&'static str>) -> Report {
    let report = Report::fatal(SqlState::PROTOCOL_VIOLATION, message);
    match detail {
        Some(detail) => report.with_detail(detail),
        None => report,
    }
}

/// Appends one of our own messages.
pub(super) fn put(message: &impl Message, out: &mut BytesMut) {
    message
        .encode(out)
        .expect("our own messages are far below pgwire's limits");
}
