//! A TLS 1.3 stream to each host with AES-256-GCM, from threads of this process, one a stream: what one would write
//! without multicast. Receivers write a file.

use crate::programs::{Run, Stage, host_name, same_bytes};
use anyhow::Context;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const PORT: u16 = 7_071;

/// Bytes of one read from the file, and of the socket's. rustls takes 4 KiB at a time from what it is given, which
/// costs a system call each if that is the socket itself.
const BUFFER: usize = 256 << 10;

/// One receiving end.
struct End {
    host: u16,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    output: PathBuf,
}

pub(crate) fn run(stage: &Stage<'_>) -> anyhow::Result<Run> {
    let directory = tempfile::tempdir_in(&stage.files.directory)?;
    let client = client_config(&stage.files.keys)?;
    let end = |host: u16| {
        let here = stage.lab.host(host);
        anyhow::Ok(End {
            host,
            listener: here.run(|| TcpListener::bind((here.addr(), PORT)))??,
            config: server_config(&stage.files.keys.join(host_name(host)))?,
            output: directory.path().join(host_name(host)),
        })
    };
    let ends: Vec<End> = (1..=stage.case.hosts).map(end).collect::<anyhow::Result<_>>()?;
    let before = stage.lab.counters(0)?.host;
    let begin = Barrier::new(ends.len() + 1);
    let (start, first, wall, done) = std::thread::scope(|scope| {
        let receivers: Vec<_> =
            ends.iter().map(|end| scope.spawn(move || receive(end, stage.timeout))).collect();
        let senders: Vec<_> = ends
            .iter()
            .map(|end| {
                scope.spawn({
                    let (begin, client, to) = (&begin, &client, stage.lab.host(end.host).addr());
                    move || {
                        begin.wait();
                        stage.lab.host(0).run(|| send(to, end.host, client, stage)).and_then(|sent| sent)
                    }
                })
            })
            .collect();
        begin.wait();
        let start = Instant::now();
        let began: Vec<io::Result<Instant>> =
            senders.into_iter().map(|sender| sender.join().expect("no thread of this panics")).collect();
        let first = began.iter().flatten().min().copied().unwrap_or(start);
        let sent = began.iter().all(Result::is_ok);
        if !sent {
            // Those that nobody connected to would wait for ever.
            wake(stage, &ends);
        }
        let received: Vec<io::Result<u64>> = receivers
            .into_iter()
            .map(|receiver| receiver.join().expect("no thread of this panics"))
            .collect();
        let done =
            sent && received.iter().all(|bytes| bytes.as_ref().is_ok_and(|bytes| *bytes == stage.bytes));
        (start, first, start.elapsed(), done)
    });
    let link_bytes = (stage.lab.counters(0)?.host - before).tx_bytes;
    let whole = done && ends.iter().all(|end| same_bytes(stage.file, &end.output));
    let trouble = (!whole).then(|| "a stream broke or ran out of time".to_owned());
    Ok(Run { data: wall.saturating_sub(first - start), wall, link_bytes, whole, trouble, report: None })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_256_GCM_SHA384];
    Arc::new(provider)
}

fn client_config(keys: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(keys.join("ca.pem")).context("the bench's own CA")?)?;
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

fn server_config(keys: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_file(keys.join("host.pem")).context("a host's certificate")?;
    let key = PrivateKeyDer::from_pem_file(keys.join("host.key.pem")).context("a host's key")?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate], key)?;
    // A ticket that the client never reads makes its kernel reset the connection when it closes.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Returns when the handshake was done.
fn send(to: Ipv4Addr, host: u16, config: &Arc<ClientConfig>, stage: &Stage<'_>) -> io::Result<Instant> {
    let name = ServerName::try_from(host_name(host)).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    let mut socket = TcpStream::connect_timeout(&SocketAddr::new(to.into(), PORT), stage.timeout)?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(stage.timeout))?;
    socket.set_read_timeout(Some(stage.timeout))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    let began = Instant::now();
    tls.set_buffer_limit(Some(BUFFER));
    let mut file = File::open(stage.file)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        rustls::Stream::new(&mut tls, &mut socket).write_all(&buffer[..length])?;
    }
    tls.send_close_notify();
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    socket.shutdown(Shutdown::Write)?;
    Ok(began)
}

fn receive(end: &End, timeout: Duration) -> io::Result<u64> {
    let (mut socket, _) = end.listener.accept()?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_nodelay(true)?;
    let deadline = Instant::now() + timeout;
    let mut tls = ServerConnection::new(Arc::clone(&end.config)).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    let mut input = BufReader::with_capacity(BUFFER, socket);
    let mut output = File::create(&end.output)?;
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        // Whole records first, then what they hold.
        match tls.reader().read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(length) => {
                output.write_all(&buffer[..length])?;
                total += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A stream that trickles ends too; its sender then finds it closed.
                if Instant::now() > deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                tls.read_tls(&mut input)?;
                tls.process_new_packets().map_err(io::Error::other)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Connects to each listener from its own host and sends nothing.
fn wake(stage: &Stage<'_>, ends: &[End]) {
    for end in ends {
        if let Ok(address) = end.listener.local_addr() {
            let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
            let _ = stage.lab.host(end.host).run(connect);
        }
    }
}
