use super::*;

#[test]
fn passwords_differ_and_do_not_show() {
    let (one, other) = (
        Secret::random().expect("random"),
        Secret::random().expect("random"),
    );
    assert_ne!(one, other);
    assert_eq!(one.expose().len(), 2 * Secret::BYTES);
    assert!(!format!("{one:?}").contains(one.expose()));
}

#[test]
fn a_verifier_is_postgresqls_and_needs_no_quoting() {
    let secret = Secret::random().expect("random");
    let verifier = secret.verifier();
    assert!(verifier.starts_with("SCRAM-SHA-256$4096:"), "{verifier}");
    assert!(!verifier.contains(secret.expose()));
    assert!(!verifier.contains(['\'', '\\']));
}

#[test]
fn the_password_file_for_people_is_bound_to_the_ports() {
    let secret = Secret("s3".into());
    let ports = Ports::from_base(21000, 0).expect("fits");
    let text = pgpass(&ports, &[("appuser", &secret)]);
    let expected = [21000, 21001, 21002, 21003, 21004].map(|port| format!("127.0.0.1:{port}:*:appuser:s3\n"));
    assert_eq!(text, expected.concat());
}
