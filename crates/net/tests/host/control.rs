//! The control channel over real TLS on loopback.

use net::control::{Control, ControlError, FRAME_BYTES_MAX, Listener, connect};
use net::pki::{Identity, PkiError, Role, create_ca, issue_host};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

pub(crate) fn fleet() -> TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    create_ca(dir.path()).expect("CA");
    dir
}

pub(crate) fn issue(dir: &Path, name: &str, roles: &[Role]) -> Identity {
    let files = issue_host(dir, name, roles, &[], 30).expect("issue");
    Identity::load(&files.dir).expect("load what was issued")
}

type Ends = (Result<Control, ControlError>, Result<(Control, String), ControlError>);

/// One connection attempt, seen from both ends.
async fn meet(sender: &Identity, receiver: &Identity, expected: &str) -> Ends {
    let mut listener = Listener::bind(LOOPBACK.into(), receiver).await.expect("listen");
    let addr = listener.local_addr();
    tokio::join!(connect(addr, sender, expected), listener.accept())
}

#[tokio::test]
async fn frames_of_all_sizes_arrive_in_order() {
    let dir = fleet();
    let (sender, receiver) =
        (issue(dir.path(), "src", &[Role::Sender]), issue(dir.path(), "web1", &[Role::Receiver]));
    let (near, far) = meet(&sender, &receiver, "web1").await;
    let (near, (far, name)) = (near.expect("connected"), far.expect("accepted"));
    assert_eq!(name, "src");
    assert_eq!(near.peer().name.as_deref(), Some("web1"));
    assert_eq!(near.local_addr().expect("open"), far.peer().addr);
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) = (near.split(), far.split());
    let frames: Vec<Vec<u8>> = [0, 1, 3, 4, 65_535, 65_536, 1 << 20, FRAME_BYTES_MAX]
        .map(|n| (0..251).cycle().take(n).collect())
        .into();
    let writing = async {
        near_write.write_frames(&frames).await.expect("batch");
        for frame in &frames {
            near_write.write_frame(frame).await.expect("single");
        }
        let error = near_write.write_frame(&vec![0; FRAME_BYTES_MAX + 1]).await.expect_err("too long");
        assert!(matches!(error, ControlError::FrameTooLong { bytes, .. } if bytes == FRAME_BYTES_MAX + 1));
        near_write.shutdown().await.expect("shutdown");
    };
    let reading = async {
        for frame in frames.iter().chain(&frames) {
            assert_eq!(far_read.read_frame().await.expect("frame").as_ref(), Some(frame));
        }
        assert_eq!(far_read.read_frame().await.expect("end"), None);
        far_write.write_frame(b"still open this way").await.expect("half closed");
        far_write.shutdown().await.expect("shutdown");
    };
    tokio::join!(writing, reading);
    assert_eq!(near_read.read_frame().await.expect("frame").as_deref(), Some(&b"still open this way"[..]));
    assert_eq!(near_read.read_frame().await.expect("end"), None);
}

#[tokio::test]
async fn a_cancelled_read_loses_nothing_and_a_dead_peer_is_told_from_a_closed_one() {
    let dir = fleet();
    let (sender, receiver) =
        (issue(dir.path(), "src", &[Role::Sender]), issue(dir.path(), "web1", &[Role::Receiver]));
    let (near, far) = meet(&sender, &receiver, "web1").await;
    let (mut near_read, near_write) = near.expect("connected").split();
    let (far_read, mut far_write) = far.expect("accepted").0.split();
    let writing = async {
        for n in 0..50_u8 {
            far_write.write_frame(&vec![n; 10_000]).await.expect("write");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    let reading = async {
        let mut next = 0;
        while next < 50 {
            if let Ok(frame) = tokio::time::timeout(Duration::from_micros(50), near_read.read_frame()).await {
                assert_eq!(frame.expect("read"), Some(vec![next; 10_000]));
                next += 1;
            }
        }
    };
    tokio::join!(writing, reading);
    drop((far_read, far_write));
    assert!(
        matches!(near_read.read_frame().await, Err(ControlError::Lost { peer }) if peer.name.as_deref() == Some("web1"))
    );
    drop(near_write);
}

#[tokio::test]
async fn another_ca_is_refused_at_both_ends() {
    let (ours, theirs) = (fleet(), fleet());
    let sender = issue(ours.path(), "src", &[Role::Sender]);
    let receiver = issue(theirs.path(), "web1", &[Role::Receiver]);
    let (near, far) = meet(&sender, &receiver, "web1").await;
    let near = near.expect_err("not our CA");
    assert!(
        matches!(&near, ControlError::NotOurCa { peer, ca } if peer.name.as_deref() == Some("web1") && ca == sender.ca_path()),
        "{near:?}"
    );
    let far = far.expect_err("refused by the caller");
    assert!(matches!(&far, ControlError::RefusedUs { why, .. } if why.contains("another CA")), "{far:?}");
    assert!(near.to_string().contains("127.0.0.1:") && near.to_string().contains("ca.pem"), "{near}");

    // The caller trusts the receiver (its ca.pem holds both CAs), but not the other way round.
    let mixed = ours.path().join("src");
    let both =
        [ours.path(), theirs.path()].map(|dir| std::fs::read_to_string(dir.join("ca.pem")).expect("read"));
    std::fs::write(mixed.join("ca.pem"), both.concat()).expect("write");
    let (near, far) = meet(&Identity::load(&mixed).expect("load"), &receiver, "web1").await;
    let near = near.expect_err("refused by the receiver");
    assert!(
        matches!(&near, ControlError::RefusedUs { why, certificate, .. } if why.contains("another CA") && certificate.starts_with(&mixed)),
        "{near:?}"
    );
    assert!(matches!(far, Err(ControlError::NotOurCa { .. })), "{far:?}");
}

#[tokio::test]
async fn a_stolen_receiver_key_sends_nothing() {
    let dir = fleet();
    let thief = issue(dir.path(), "web2", &[Role::Receiver]);
    let receiver = issue(dir.path(), "web1", &[Role::Receiver]);
    let mut listener = Listener::bind(LOOPBACK.into(), &receiver).await.expect("listen");
    let addr = listener.local_addr();
    let error = connect(addr, &thief, "web1").await.expect_err("its own check");
    assert!(
        matches!(&error, ControlError::Identity(PkiError::MissingRole { role: Role::Sender, .. })),
        "{error:?}"
    );
    // A thief would leave out that check: TLS by hand.
    let (stolen, trusted) = (dir.path().join("web2"), dir.path().join("ca.pem"));
    let by_hand = async {
        let mut tls = tls_by_hand(addr, &trusted, &stolen).await;
        let mut greeting = [0; 6];
        tls.read_exact(&mut greeting).await.expect("greeting");
        assert_eq!(&greeting, b"VSCT\x01\x01");
        let _ = tls.write_all(b"VSCT\x01\x00\x01\x00\x00\x00x").await;
        assert_eq!(tls.read(&mut greeting).await.unwrap_or(0), 0, "nothing more is said");
    };
    let ((), far) = tokio::join!(by_hand, listener.accept());
    let far = far.expect_err("no sender role");
    assert!(
        matches!(&far, ControlError::WrongRole { peer, role: Role::Sender } if peer.name.as_deref() == Some("web2")),
        "{far:?}"
    );
}

pub(crate) async fn tls_by_hand(
    addr: SocketAddr,
    ca: &Path,
    host: &Path,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).expect("CA")).expect("CA");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(host.join("host.pem")).expect("certificate")],
            PrivateKeyDer::from_pem_file(host.join("host.key.pem")).expect("key"),
        )
        .expect("key fits");
    config.alpn_protocols = vec![b"vmscatter/1".to_vec()];
    let tcp = tokio::net::TcpStream::connect(addr).await.expect("connect");
    let name = "web1".try_into().expect("name");
    tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await.expect("handshake")
}

#[tokio::test]
async fn a_receiver_without_the_role_and_another_host_are_named() {
    let dir = fleet();
    let sender = issue(dir.path(), "src", &[Role::Sender]);
    let receiver = issue(dir.path(), "web1", &[Role::Receiver, Role::Sender]);
    let (near, far) = meet(&sender, &receiver, "db1").await;
    let near = near.expect_err("other name");
    assert!(
        matches!(&near, ControlError::WrongName { peer, names } if peer.name.as_deref() == Some("db1") && names.iter().any(|name| name.contains("web1"))),
        "{near:?}"
    );
    assert!(matches!(far, Err(ControlError::RefusedUs { .. })), "{far:?}");
    let only_sender = issue(dir.path(), "web3", &[Role::Sender]);
    let error = Listener::bind(LOOPBACK.into(), &only_sender).await.expect_err("no receiver role");
    assert!(matches!(error, ControlError::Identity(PkiError::MissingRole { role: Role::Receiver, .. })));
}

#[tokio::test]
async fn a_senders_certificate_receives_nothing() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let dir = fleet();
    let sender = issue(dir.path(), "src", &[Role::Sender]);
    let files = issue_host(dir.path(), "web1", &[Role::Sender], &[], 30).expect("issue");
    // What calls itself web1 listens without checking itself.
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&files.certificate).expect("certificate")],
            PrivateKeyDer::from_pem_file(&files.key).expect("key"),
        )
        .expect("key fits");
    config.alpn_protocols = vec![b"vmscatter/1".to_vec()];
    let listener = tokio::net::TcpListener::bind(LOOPBACK).await.expect("listen");
    let addr = listener.local_addr().expect("address");
    let answer = async {
        let (tcp, _) = listener.accept().await.expect("accept");
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let mut tls = acceptor.accept(tcp).await.expect("handshake");
        tls.write_all(b"VSCT\x01\x00").await.expect("greeting");
        tls.flush().await.expect("greeting");
        let mut verdict = Vec::new();
        tls.read_to_end(&mut verdict).await.expect("verdict and farewell");
        assert_eq!(verdict, b"VSCT\x01\x01");
    };
    let (near, ()) = tokio::join!(connect(addr, &sender, "web1"), answer);
    assert!(matches!(near, Err(ControlError::WrongRole { role: Role::Receiver, .. })), "{near:?}");
}

#[tokio::test]
async fn refused_silent_and_foreign_peers_are_told_apart() {
    let dir = fleet();
    let sender = issue(dir.path(), "src", &[Role::Sender]);
    let closed = {
        let listener = tokio::net::TcpListener::bind(LOOPBACK).await.expect("listen");
        listener.local_addr().expect("address")
    };
    let error = connect(closed, &sender, "web1").await.expect_err("closed");
    assert!(matches!(&error, ControlError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains(&closed.to_string()) && error.to_string().contains("web1"));

    let foreign = tokio::net::TcpListener::bind(LOOPBACK).await.expect("listen");
    let addr = foreign.local_addr().expect("address");
    let answer = async {
        let (mut tcp, _) = foreign.accept().await.expect("accept");
        tcp.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.expect("write");
        let _ = tcp.read_to_end(&mut Vec::new()).await;
    };
    let (error, ()) = tokio::join!(connect(addr, &sender, "web1"), answer);
    assert!(matches!(error, Err(ControlError::NotScatter { .. })), "{error:?}");

    let receiver = issue(dir.path(), "web1", &[Role::Receiver]);
    let mut listener = Listener::bind(LOOPBACK.into(), &receiver).await.expect("listen");
    let addr = listener.local_addr();
    let silent = tokio::net::TcpStream::connect(addr).await.expect("connect");
    let (near, far) = tokio::join!(connect(addr, &sender, "web1"), listener.accept());
    assert!(near.is_ok() && far.is_ok(), "a silent caller delays no other");
    drop(silent);
    assert!(matches!(listener.accept().await, Err(ControlError::Lost { peer }) if peer.name.is_none()));
    let mut garbage = tokio::net::TcpStream::connect(addr).await.expect("connect");
    garbage.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("write");
    assert!(matches!(listener.accept().await, Err(ControlError::NotScatter { .. })));
}

/// Callers that hold every place and say nothing, and more of them all the time.
#[tokio::test]
async fn callers_that_say_nothing_keep_no_sender_out() {
    let dir = fleet();
    let receiver = issue(dir.path(), "r", &[Role::Receiver]);
    let sender = issue(dir.path(), "s", &[Role::Sender]);
    let mut listener = Listener::bind(LOOPBACK.into(), &receiver).await.expect("listen");
    let addr = listener.local_addr();
    let mut silent = Vec::new();
    // As many as the kernel queues.
    for _ in 0..100 {
        silent.push(tokio::net::TcpStream::connect(addr).await.expect("connect"));
    }
    let meet = async {
        let serve = async {
            loop {
                // Dropped callers are no errors; those that ran out of time are told.
                if let Ok((_, name)) = listener.accept().await {
                    return name;
                }
            }
        };
        tokio::join!(connect(addr, &sender, "r"), serve)
    };
    let (control, name) = tokio::time::timeout(Duration::from_secs(4), meet).await.expect("in time");
    assert!(control.is_ok() && name == "s", "{control:?}");
    // Nor do those that were dropped stay open.
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(4), silent[0].read(&mut byte)).await.expect("closed");
    assert!(matches!(read, Ok(0) | Err(_)));
}
