//! Certificates and keys: their files, their time, and what is wrong with them.

use crate::control::{LOOPBACK, fleet, issue, tls_by_hand};
use net::control::{ControlError, Listener};
use net::pki::{Identity, PkiError, Role, create_ca, describe, issue_host};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, date_time_ymd};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tokio::io::AsyncReadExt;

/// Like `issue_host`, but valid between two days of January 2000 or 2100.
fn issue_of_year(dir: &Path, name: &str, year: i32) -> std::path::PathBuf {
    let read = |file| std::fs::read_to_string(dir.join(file)).expect("CA");
    let ca_key = KeyPair::from_pem(&read("ca.key.pem")).expect("key");
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), ca_key).expect("CA");
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("name");
    params.distinguished_name.push(DnType::CommonName, name);
    for role in [Role::Sender, Role::Receiver] {
        params.subject_alt_names.push(SanType::URI(role.uri().try_into().expect("ASCII")));
    }
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (date_time_ymd(year, 1, 1), date_time_ymd(year, 1, 9));
    let certificate = params.signed_by(&key, &issuer).expect("sign");
    let host = dir.join(name);
    std::fs::create_dir(&host).expect("directory");
    std::fs::write(host.join("host.pem"), certificate.pem()).expect("write");
    std::fs::write(host.join("host.key.pem"), key.serialize_pem()).expect("write");
    std::fs::write(host.join("ca.pem"), read("ca.pem")).expect("write");
    host
}

#[tokio::test]
async fn expired_and_future_certificates() {
    let dir = fleet();
    for (year, name) in [(2000, "old"), (2100, "new")] {
        let host = issue_of_year(dir.path(), name, year);
        let error = Identity::load(&host).expect_err("not now");
        let text = error.to_string();
        match error {
            PkiError::Expired { file, host: named, not_after, now } => {
                assert!(year == 2000 && named == name && not_after < now && file == host.join("host.pem"));
                assert!(text.contains("2000-01-09 00:00:00 UTC") && text.contains("clock"), "{text}");
            }
            PkiError::NotYetValid { host: named, .. } => {
                assert!(year == 2100 && named == name);
                assert!(text.contains("2100-01-01 00:00:00 UTC") && text.contains("clock"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(describe(&host.join("host.pem")).expect("still described").names, [name]);
    }
    // The caller's clock is wrong or its certificate old, and it calls anyway.
    let receiver = issue(dir.path(), "web1", &[Role::Receiver]);
    let mut listener = Listener::bind(LOOPBACK.into(), &receiver).await.expect("listen");
    for host in ["old", "new"] {
        let (addr, trusted, stale) =
            (listener.local_addr(), dir.path().join("ca.pem"), dir.path().join(host));
        let by_hand = async {
            let mut tls = tls_by_hand(addr, &trusted, &stale).await;
            let error = tls.read(&mut [0; 6]).await.expect_err("an alert");
            assert!(error.to_string().contains("CertificateExpired"), "{error}");
        };
        let ((), far) = tokio::join!(by_hand, listener.accept());
        match far.expect_err("out of its time") {
            ControlError::Expired { not_after: Some(_), .. } => assert_eq!(host, "old"),
            ControlError::NotYetValid { not_before: Some(_), .. } => assert_eq!(host, "new"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nothing_is_overwritten_and_keys_are_private() {
    let dir = fleet();
    assert!(matches!(create_ca(dir.path()), Err(PkiError::Exists { .. })));
    let address = Ipv4Addr::new(10, 0, 0, 7).into();
    let files = issue_host(dir.path(), "web-1.example", &[Role::Receiver], &[address], 30).expect("issue");
    assert!(matches!(
        issue_host(dir.path(), "web-1.example", &[Role::Receiver], &[], 30),
        Err(PkiError::Exists { path }) if path == files.dir
    ));
    for key in [&files.key, &dir.path().join("ca.key.pem")] {
        assert_eq!(std::fs::metadata(key).expect("there").permissions().mode() & 0o777, 0o600);
    }
    let info = describe(&files.certificate).expect("described");
    assert_eq!(
        (info.names.as_slice(), info.addresses.as_slice()),
        (&["web-1.example".to_owned()][..], &[address][..])
    );
    assert_eq!((info.roles.as_slice(), info.is_ca), (&[Role::Receiver][..], false));
    let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
    let back = now.duration_since(info.not_before).expect("back-dated");
    assert!((4 * minute..6 * minute).contains(&back));
    let ahead = info.not_after.duration_since(now).expect("ahead");
    assert!((29 * 1440 * minute..=30 * 1440 * minute).contains(&ahead));
    assert!(describe(&dir.path().join("ca.pem")).expect("CA").is_ca);
}

#[test]
fn unusable_files_and_requests_are_named() {
    let dir = fleet();
    for name in ["", "a/b", "..", "../x", "-a", "a..b", "*.example", "10.0.0.1", "ä", &"a".repeat(64)] {
        assert!(
            matches!(issue_host(dir.path(), name, &[Role::Sender], &[], 1), Err(PkiError::BadName { .. })),
            "{name}"
        );
    }
    assert!(matches!(issue_host(dir.path(), "a", &[], &[], 1), Err(PkiError::BadRequest { .. })));
    assert!(matches!(issue_host(dir.path(), "a", &[Role::Sender], &[], 0), Err(PkiError::BadRequest { .. })));
    let a = issue_host(dir.path(), "a", &[Role::Sender], &[], 1).expect("issue");
    let b = issue_host(dir.path(), "b", &[Role::Sender], &[], 1).expect("issue");
    let load = |ca, certificate, key| Identity::load_files(ca, certificate, key);
    assert!(
        matches!(load(&a.ca, &a.certificate, &b.key), Err(PkiError::KeyMismatch { key, .. }) if key == b.key)
    );
    assert!(matches!(load(&a.ca, &a.key, &a.key), Err(PkiError::Parse { path, .. }) if path == a.key));
    assert!(matches!(load(&a.ca, &a.certificate, &a.certificate), Err(PkiError::Parse { .. })));
    let missing = dir.path().join("missing.pem");
    assert!(matches!(load(&a.ca, &missing, &a.key), Err(PkiError::Read { path, .. }) if path == missing));
    let other = fleet();
    let error = load(&other.path().join("ca.pem"), &a.certificate, &a.key).expect_err("another CA");
    assert!(matches!(&error, PkiError::NotOurCa { host, .. } if host == "a"), "{error:?}");

    let identity = Identity::load(&a.dir).expect("fine");
    assert!(identity.warnings().is_empty());
    assert!(matches!(identity.require_name("b"), Err(PkiError::WrongName { names, .. }) if names == ["a"]));
    identity.require_name("A").expect("names have no case");
    std::fs::set_permissions(&a.key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let warned = Identity::load(&a.dir).expect("usable");
    assert!(warned.warnings()[0].contains("chmod 600"), "{:?}", warned.warnings());
}
