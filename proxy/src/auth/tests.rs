#![allow(clippy::unwrap_used)]

use std::num::NonZeroU32;
use std::sync::Arc;

use proptest::prelude::*;

use super::scram::client::{self, Binding as ClientBinding};
use super::scram::server::{Binding, Candidate, ClientFirstAwaited};
use super::scram::{self, Keys, NONCE_LENGTH_MAX, ScramError, Verifier};
use super::*;
use crate::config::{Secret, User};

const ITERATIONS: NonZeroU32 = scram::ITERATIONS_DEFAULT;
/// Few, for tests in which the stretching is not the point.
const FEW: NonZeroU32 = NonZeroU32::new(2).expect("2 is not zero");

fn verifier(password: &str) -> Arc<Verifier> {
    Arc::new(Verifier::derive(password, b"0123456789abcdef".to_vec(), FEW))
}

fn server(password: &str, binding: Binding) -> ClientFirstAwaited {
    let candidate = Candidate {
        verifier: verifier(password),
        genuine: true,
    };
    ClientFirstAwaited::new(candidate, binding)
}

/// Plays a whole exchange between our two sides.
fn play(
    password: &str,
    candidate: Candidate,
    client: ClientBinding,
    server: Binding,
) -> Result<Keys, ScramError> {
    let (first, on_client) = client::begin(client, scram::nonce());
    let (answer, on_server) =
        ClientFirstAwaited::new(candidate, server).client_first(&first, &scram::nonce())?;
    let challenge = on_client.server_first(&answer)?;
    let keys = Keys::derive(password, challenge.salt(), challenge.iterations());
    let (last, on_client) = challenge.answer(&keys);
    let proved = on_server.client_final(&last)?;
    on_client.server_final(&proved.server_final)?;
    Ok(proved.keys)
}

fn genuine(password: &str) -> Candidate {
    Candidate {
        verifier: verifier(password),
        genuine: true,
    }
}

/// RFC 7677, section 3.
mod rfc_7677 {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    use super::*;

    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &[u8] =
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &[u8] =
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &[u8] = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    #[test]
    fn the_servers_side() {
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let candidate = Candidate {
            verifier: Arc::new(Verifier::derive("pencil", salt, ITERATIONS)),
            genuine: true,
        };
        let (answer, next) = ClientFirstAwaited::new(candidate, Binding::NotOffered)
            .client_first(CLIENT_FIRST, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
            .unwrap();
        assert_eq!(answer, SERVER_FIRST);
        assert_eq!(
            next.client_final(CLIENT_FINAL).unwrap().server_final,
            SERVER_FINAL
        );
    }

    #[test]
    fn the_clients_side() {
        let (first, next) = client::begin_as(
            "user",
            ClientBinding::Unsupported,
            "rOprNGfwEbeRWgbNEkqO".to_owned(),
        );
        assert_eq!(first, CLIENT_FIRST);
        let challenge = next.server_first(SERVER_FIRST).unwrap();
        let keys = Keys::derive("pencil", challenge.salt(), challenge.iterations());
        let (last, next) = challenge.answer(&keys);
        assert_eq!(last, CLIENT_FINAL);
        next.server_final(SERVER_FINAL).unwrap();
    }
}

#[test]
fn the_right_password_gets_in_and_the_wrong_one_does_not() {
    let try_with = |password| {
        play(
            password,
            genuine("secret"),
            ClientBinding::Unsupported,
            Binding::NotOffered,
        )
        .map(|_| ())
    };
    assert_eq!(try_with("secret"), Ok(()));
    assert_eq!(try_with("Secret"), Err(ScramError::WrongProof));
}

/// The mock exchange of an unknown user must fail even if somebody guesses what its mock verifier is made of.
#[test]
fn nobody_gets_in_as_an_unknown_user() {
    let candidate = Candidate {
        genuine: false,
        ..genuine("secret")
    };
    let result = play(
        "secret",
        candidate,
        ClientBinding::Unsupported,
        Binding::NotOffered,
    );
    assert_eq!(result.map(|_| ()), Err(ScramError::WrongProof));
}

#[test]
fn the_keys_that_a_proof_reveals_log_in_elsewhere() {
    let keys = play(
        "secret",
        genuine("secret"),
        ClientBinding::Unsupported,
        Binding::NotOffered,
    )
    .unwrap();
    let (first, on_client) = client::begin(ClientBinding::Unsupported, scram::nonce());
    let (answer, on_server) = server("secret", Binding::NotOffered)
        .client_first(&first, &scram::nonce())
        .unwrap();
    let (last, on_client) = on_client.server_first(&answer).unwrap().answer(&keys);
    let proved = on_server.client_final(&last).unwrap();
    on_client.server_final(&proved.server_final).unwrap();
}

#[test]
fn a_server_that_does_not_know_the_verifier_is_found_out() {
    let (first, on_client) = client::begin(ClientBinding::Unsupported, scram::nonce());
    let (answer, _) = server("secret", Binding::NotOffered)
        .client_first(&first, &scram::nonce())
        .unwrap();
    let challenge = on_client.server_first(&answer).unwrap();
    let keys = Keys::derive("secret", challenge.salt(), challenge.iterations());
    let (_, on_client) = challenge.answer(&keys);
    let forged = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
    assert_eq!(
        on_client.server_final(forged),
        Err(ScramError::WrongServerSignature)
    );
}

#[test]
fn channel_binding_flags_are_held_against_what_was_offered() {
    let data: Arc<[u8]> = Arc::from(&b"hash of the certificate"[..]);
    let other: Arc<[u8]> = Arc::from(&b"hash of another certificate"[..]);
    let result = |client, server| play("secret", genuine("secret"), client, server).map(|_| ());
    let end_point = |data: &Arc<[u8]>| ClientBinding::EndPoint(Arc::clone(data));
    let bound = || Binding::EndPoint(Arc::clone(&data));

    assert_eq!(result(ClientBinding::Unsupported, Binding::NotOffered), Ok(()));
    assert_eq!(result(ClientBinding::NotOffered, Binding::NotOffered), Ok(()));
    assert!(matches!(
        result(end_point(&data), Binding::NotOffered),
        Err(ScramError::Malformed(_))
    ));

    assert_eq!(result(ClientBinding::Unsupported, Binding::Declined), Ok(()));
    assert_eq!(
        result(ClientBinding::NotOffered, Binding::Declined),
        Err(ScramError::BindingDowngraded)
    );
    assert!(matches!(
        result(end_point(&data), Binding::Declined),
        Err(ScramError::Malformed(_))
    ));

    assert_eq!(result(end_point(&data), bound()), Ok(()));
    assert_eq!(
        result(end_point(&other), bound()),
        Err(ScramError::BindingMismatch)
    );
    assert!(matches!(
        result(ClientBinding::Unsupported, bound()),
        Err(ScramError::Malformed(_))
    ));
    assert!(matches!(
        result(ClientBinding::NotOffered, bound()),
        Err(ScramError::Malformed(_))
    ));
}

#[test]
fn malformed_first_messages_of_clients() {
    let long_nonce = format!("n,,n=,r={}", "x".repeat(NONCE_LENGTH_MAX + 1));
    let long_message = format!("n,,n=,r=x,e={}", "x".repeat(scram::MESSAGE_SIZE_MAX));
    for message in [
        &b""[..],
        b"n",
        b"n,",
        b"n,,",
        b"x,,n=,r=abc",
        b"n,,r=abc",
        b"n,,n=,r=",
        b"n,,n=,r=a\x01c",
        b"n,,n=,r=a\xc3\xa9",
        b"n,,n=,r=abc,",
        b"n,,n=,r=abc,=",
        b"n,,n=,r=abc\0",
        b"p=tls-server-end-point,,n=,r=abc",
        long_nonce.as_bytes(),
        long_message.as_bytes(),
    ] {
        let result = server("secret", Binding::NotOffered).client_first(message, "nonce");
        assert!(
            matches!(result, Err(ScramError::Malformed(_))),
            "{:?}",
            message.escape_ascii().to_string()
        );
    }
    for message in [&b"n,a=other,n=,r=abc"[..], b"n,,m=extension,n=,r=abc"] {
        let result = server("secret", Binding::NotOffered).client_first(message, "nonce");
        assert!(matches!(result, Err(ScramError::Unsupported(_))));
    }
}

#[test]
fn malformed_final_messages_of_clients() {
    let proof = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    let judge = |message: &str| {
        let (_, next) = server("secret", Binding::NotOffered)
            .client_first(b"n,,n=,r=abc", "def")
            .unwrap();
        next.client_final(message.as_bytes()).map(|_| ()).unwrap_err()
    };
    for message in [
        String::new(),
        "c=biws".to_owned(),
        "c=biws,r=abcdef".to_owned(),
        "r=abcdef,c=biws,p=AAAA".to_owned(),
        "c=biws,r=abcdef,p=".to_owned(),
        "c=biws,r=abcdef,p=AAAA".to_owned(),
        "c=biws,r=abcdef,p=????".to_owned(),
        format!("c=biws,r=abcdef,p={}", "A".repeat(900)),
        format!("c=biws,r=abcdef,p={proof},x=y"),
    ] {
        assert!(matches!(judge(&message), ScramError::Malformed(_)), "{message}");
    }
    assert_eq!(
        judge(&format!("c=biws,r=abcdee,p={proof}")),
        ScramError::NonceMismatch
    );
    assert_eq!(
        judge(&format!("c=eSws,r=abcdef,p={proof}")),
        ScramError::BindingMismatch
    );
    assert_eq!(
        judge(&format!("c=biws,r=abcdef,p={proof}")),
        ScramError::WrongProof
    );
    assert_eq!(
        judge(&format!("c=biws,r=abcdef,x=y,p={proof}")),
        ScramError::WrongProof
    );
}

/// CVE-2026-6665: an overlong nonce from a backend.
#[test]
fn malformed_first_messages_of_nodes() {
    let judge = |message: &str| {
        let (_, next) = client::begin(ClientBinding::Unsupported, "abc".to_owned());
        next.server_first(message.as_bytes()).map(|_| ()).unwrap_err()
    };
    for message in [
        "",
        "r=abcdef",
        "r=abcdef,s=AAAA",
        "r=abcdef,s=AAAA,i=",
        "r=abcdef,s=AAAA,i=0",
        "r=abcdef,s=AAAA,i=-1",
        "r=abcdef,s=AAAA,i=4294967296",
        "r=abcdef,s=,i=4096",
        "r=abcdef,s=?,i=4096",
        "r=abcdef,s=AAAA,i=4096,x=y",
        &format!("r=abc{},s=AAAA,i=4096", "d".repeat(NONCE_LENGTH_MAX)),
        &format!(
            "r=abcdef,s={},i=4096",
            "A".repeat(4 * scram::SALT_SIZE_MAX / 3 + 4)
        ),
    ] {
        assert!(matches!(judge(message), ScramError::Malformed(_)), "{message}");
    }
    assert_eq!(judge("r=abc,s=AAAA,i=4096"), ScramError::NonceMismatch);
    assert_eq!(judge("r=xyzabc,s=AAAA,i=4096"), ScramError::NonceMismatch);
    assert_eq!(judge("r=abcdef,s=AAAA,i=1000001"), ScramError::TooManyIterations);
}

#[test]
fn passwords_are_prepared_as_postgresql_does() {
    let keys = |password| {
        let verifier = Verifier::derive(password, b"salt".to_vec(), FEW);
        move |other: &str| Verifier::derive(other, b"salt".to_vec(), FEW) == verifier
    };
    // Normalised by SASLprep (RFC 4013, section 3).
    assert!(keys("I\u{ad}X")("IX"));
    assert!(keys("\u{2168}")("IX"));
    // Prohibited or emptied: taken as they are.
    assert!(!keys("a\u{7}b")("ab"));
    assert!(!keys("\u{ad}")(""));
}

#[test]
fn verifiers_are_read_as_pg_authid_holds_them() {
    // CREATE ROLE … PASSWORD 'pencil' on PostgreSQL 15.
    let text = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let verifier = Verifier::parse(text).unwrap();
    assert_eq!(verifier.iterations(), ITERATIONS);
    assert_eq!(
        verifier,
        Verifier::derive("pencil", verifier.salt().to_vec(), ITERATIONS)
    );
    for broken in [
        "",
        "SCRAM-SHA-256$",
        "SCRAM-SHA-256$4096",
        "SCRAM-SHA-256$4096:AAAA$",
        "SCRAM-SHA-256$0:AAAA$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        "SCRAM-SHA-256$4096:$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        "SCRAM-SHA-256$4096:AAAA$AAAA:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        "SCRAM-SHA-512$4096:AAAA$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    ] {
        assert_eq!(Verifier::parse(broken), None, "{broken}");
    }
}

#[test]
fn md5_as_postgresql_computes_it() {
    // SELECT 'md5' || md5('secret' || 'alice'), and the same over its digits and the salt.
    let hash = Md5Hash::parse("md54a0a68b43b6cd5cf266fa02f196e2371").unwrap();
    let answer = hash.answer([1, 2, 3, 4]);
    assert_eq!(answer, "md598a0412b9c31436fc53776e863350083");
    assert!(Md5Hash::of("secret", "alice").accepts([1, 2, 3, 4], answer.as_bytes()));
    assert!(hash.accepts([1, 2, 3, 4], answer.as_bytes()));
    assert!(!hash.accepts([1, 2, 3, 5], answer.as_bytes()));
    assert!(!hash.accepts([1, 2, 3, 4], b""));
    let stored = Md5Hash::parse("md578d0d5d6f1aaa4b1b1f04c1c9c11fc36").unwrap();
    assert!(!stored.accepts([1, 2, 3, 4], answer.as_bytes()));
    assert!(Md5Hash::parse("md578D0D5D6F1AAA4B1B1F04C1C9C11FC36").is_none());
    assert!(Md5Hash::parse("md5").is_none());
}

#[test]
fn a_password_is_stretched_once_for_each_challenge() {
    let password = Password::new(Secret::new("secret"));
    assert!(password.known_keys(b"salt", FEW).is_none());
    password.derive_keys(b"salt", FEW);
    assert!(password.known_keys(b"salt", FEW).is_some());
    assert!(password.known_keys(b"pepper", FEW).is_none());
    for salt in 0..100_u8 {
        password.derive_keys(&[salt], FEW);
    }
    assert!(
        password.known_keys(b"salt", FEW).is_none(),
        "the memory has a limit"
    );
    assert!(password.known_keys(&[99], FEW).is_some());
}

fn user(name: &str, password: Option<&str>) -> User {
    User {
        name: name.to_owned(),
        password: password.map(Secret::new),
        pool_size: None,
        pool_mode: None,
        route: None,
        read_consistency: None,
    }
}

fn looks(challenge: &Challenge) -> String {
    match challenge {
        Challenge::Scram(candidate, _) => {
            format!(
                "scram {} {}",
                candidate.verifier.iterations(),
                candidate.verifier.salt().len()
            )
        }
        Challenge::Md5(..) => "md5".to_owned(),
    }
}

#[test]
fn an_unknown_user_looks_like_a_known_one() {
    let long_salt = "SCRAM-SHA-256$10000:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVm$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
    let users = Users::new(&[user("alice", Some(long_salt)), user("bob", Some(long_salt))]).unwrap();
    for method in [PasswordMethod::ScramSha256, PasswordMethod::Md5] {
        let known = users.challenge("alice", method);
        let unknown = users.challenge("mallory", method);
        assert_eq!(looks(&known), "scram 10000 48");
        assert_eq!(looks(&unknown), looks(&known));
        assert!(matches!(
            unknown,
            Challenge::Scram(Candidate { genuine: false, .. }, Standing::Unknown)
        ));
    }
    let salt = |name| match users.challenge(name, PasswordMethod::ScramSha256) {
        Challenge::Scram(candidate, _) => candidate.verifier.salt().to_vec(),
        Challenge::Md5(..) => unreachable!("SCRAM was asked for"),
    };
    assert_eq!(
        salt("mallory"),
        salt("mallory"),
        "a user's salt does not change from login to login"
    );
    assert_ne!(salt("mallory"), salt("trudy"));

    let md5 = Users::new(&[user("alice", Some("md578d0d5d6f1aaa4b1b1f04c1c9c11fc36"))]).unwrap();
    assert_eq!(looks(&md5.challenge("alice", PasswordMethod::Md5)), "md5");
    assert_eq!(looks(&md5.challenge("mallory", PasswordMethod::Md5)), "md5");
    assert_eq!(
        looks(&md5.challenge("alice", PasswordMethod::ScramSha256)),
        "scram 4096 16"
    );
    assert_eq!(
        looks(&md5.challenge("mallory", PasswordMethod::ScramSha256)),
        "scram 4096 16"
    );
}

#[test]
fn what_may_log_in_to_the_nodes() {
    let users = Users::new(&[
        user("plain", Some("secret")),
        user("hash", Some("md578d0d5d6f1aaa4b1b1f04c1c9c11fc36")),
        user("none", None),
    ])
    .unwrap();
    assert!(matches!(users.credential("plain"), Credential::Password(_)));
    assert!(matches!(users.credential("hash"), Credential::Md5Hash(_)));
    assert!(matches!(users.credential("none"), Credential::None));
    assert!(matches!(users.credential("nobody"), Credential::None));
    for method in [PasswordMethod::ScramSha256, PasswordMethod::Md5] {
        let (Challenge::Scram(_, standing) | Challenge::Md5(_, standing)) = users.challenge("none", method);
        assert!(
            matches!(standing, Standing::Unknown),
            "no password opens an account without one"
        );
    }
}

#[test]
fn users_that_cannot_be_meant_are_refused() {
    let broken = Users::new(&[user("alice", Some("SCRAM-SHA-256$4096:broken"))]);
    assert_eq!(
        broken.unwrap_err(),
        UserError::MalformedVerifier("alice".to_owned())
    );
    let twice = Users::new(&[user("alice", None), user("alice", None)]);
    assert_eq!(twice.unwrap_err(), UserError::Duplicate("alice".to_owned()));
}

#[test]
fn secrets_show_themselves_to_nobody() {
    let users = Users::new(&[user("alice", Some("hunter2"))]).unwrap();
    let keys = ScramKeys {
        keys: Keys::new([7; 32], [8; 32]),
        salt: vec![],
        iterations: FEW,
    };
    let shown = format!(
        "{users:?} {:?} {:?} {:?} {:?}",
        users.credential("alice"),
        users.challenge("alice", PasswordMethod::Md5),
        users.challenge("alice", PasswordMethod::ScramSha256),
        Credential::ScramKeys(Arc::new(keys)),
    );
    assert!(!shown.contains("hunter2") && !shown.contains("7, 7"), "{shown}");
}

/// A message that is nearly one: parts of messages, shuffled.
fn nearly_a_message() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(&b"n,,"[..]),
        Just(&b"y,,"[..]),
        Just(&b"p=tls-server-end-point,,"[..]),
        Just(&b"n="[..]),
        Just(&b"r=abc"[..]),
        Just(&b"def"[..]),
        Just(&b",s=AAAA"[..]),
        Just(&b",i=1"[..]),
        Just(&b","[..]),
        Just(&b"="[..]),
        Just(&b"c=biws"[..]),
        Just(&b",p="[..]),
        Just(&b"v="[..]),
        Just(&b"\xff\0"[..]),
    ];
    prop_oneof![
        proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat()),
        proptest::collection::vec(any::<u8>(), 0..1100),
    ]
}

proptest! {
    #[test]
    fn no_message_panics(message in nearly_a_message()) {
        for binding in [Binding::NotOffered, Binding::Declined, Binding::EndPoint(Arc::from(&b"x"[..]))] {
            let _ = server("secret", binding).client_first(&message, "def");
        }
        let (_, next) = server("secret", Binding::NotOffered).client_first(b"n,,n=,r=abc", "def").unwrap();
        prop_assert!(next.client_final(&message).is_err());
        let (_, next) = client::begin(ClientBinding::Unsupported, "abc".to_owned());
        if let Ok(challenge) = next.server_first(&message) {
            let (_, next) = challenge.answer(&Keys::new([1; 32], [2; 32]));
            prop_assert!(next.server_final(&message).is_err());
        }
    }

    #[test]
    fn no_stored_secret_panics(text in "(SCRAM-SHA-256\\$|md5)?[0-9a-zA-Z:$=+/]{0,120}") {
        let _ = Verifier::parse(&text);
        let _ = Md5Hash::parse(&text);
    }
}
