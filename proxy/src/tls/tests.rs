#![allow(clippy::unwrap_used)]

use ring::digest::{SHA256, SHA384, digest};

use super::end_point;

fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    parameters.self_signed(&key).unwrap().der().to_vec()
}

#[test]
fn the_end_point_is_the_hash_that_the_signature_names() {
    let certificate_256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
    let expected = digest(&SHA256, &certificate_256);
    assert_eq!(
        end_point::hash(&certificate_256).as_deref(),
        Some(expected.as_ref())
    );

    let certificate_384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);
    let expected = digest(&SHA384, &certificate_384);
    assert_eq!(
        end_point::hash(&certificate_384).as_deref(),
        Some(expected.as_ref())
    );
}

#[test]
fn a_signature_without_a_hash_has_no_end_point() {
    assert_eq!(end_point::hash(&certificate(&rcgen::PKCS_ED25519)), None);
}

#[test]
fn a_broken_certificate_has_no_end_point() {
    let whole = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
    for cut in 0..40 {
        for byte in 0..=u8::MAX {
            let mut broken = whole[..cut].to_vec();
            broken.push(byte);
            assert_eq!(end_point::hash(&broken), None, "cut at {cut}, then {byte:#04x}");
        }
    }
}
