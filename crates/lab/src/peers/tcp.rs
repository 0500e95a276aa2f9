//! A plain TCP stream to each host, from threads of this process, one a stream.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::{Outcome, PeerError, Run, Stream, same_bytes};

const PORT: u16 = 7_070;

/// Bytes of one read(2) and write(2).
const BUFFER: usize = 256 << 10;

pub(super) fn run(run: &Run<'_>, stream: Stream) -> Result<Outcome, PeerError> {
    let listen = |host: u16| {
        let host = run.lab.host(host);
        let listener = host.run(|| TcpListener::bind((host.addr(), PORT))).and_then(|listener| listener);
        listener.map_err(|source| PeerError::io("listen for", Path::new(host.namespace()), source))
    };
    let listeners = run.receivers().map(listen).collect::<Result<Vec<_>, _>>()?;
    let output = |host: u16| stream.keep.then(|| run.directory.join(host.to_string()));
    let begin = Barrier::new(usize::from(run.hosts) + 1);
    let (mut start, mut wall) = (Instant::now(), Duration::ZERO);
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        let receivers: Vec<_> = run
            .receivers()
            .zip(&listeners)
            .map(|(host, listener)| {
                let output = output(host);
                scope.spawn(move || receive(listener, output, run.options.timeout))
            })
            .collect();
        let senders: Vec<_> = run
            .receivers()
            .map(|host| {
                let (begin, to) = (&begin, run.lab.host(host).addr());
                let sender = run.lab.host(0);
                scope.spawn(move || {
                    begin.wait();
                    sender
                        .run(|| send(to, run.file, stream.sendfile, run.options.timeout))
                        .and_then(|sent| sent)
                })
            })
            .collect();
        begin.wait();
        start = Instant::now();
        let sent: Vec<bool> = senders.into_iter().map(|sender| matches!(sender.join(), Ok(Ok(())))).collect();
        if !sent.iter().all(|sent| *sent) {
            // Those that nobody connected to would wait for ever.
            wake(run, &listeners);
        }
        for (receiver, sent) in receivers.into_iter().zip(sent) {
            received.push(sent && matches!(receiver.join(), Ok(Ok(bytes)) if bytes == run.bytes));
        }
        wall = start.elapsed();
    });
    let completed = received.iter().all(|received| *received);
    let is_same = |host: u16| output(host).is_none_or(|path| same_bytes(run.file, &path));
    let per_host_ok =
        run.receivers().zip(received).map(|(host, received)| received && is_same(host)).collect();
    Ok(Outcome { start, wall, per_host_ok, completed })
}

/// Connects to each listener from its own host and sends nothing.
fn wake(run: &Run<'_>, listeners: &[TcpListener]) {
    for (host, listener) in run.receivers().zip(listeners) {
        if let Ok(address) = listener.local_addr() {
            let _ = run.lab.host(host).run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)));
        }
    }
}

fn send(to: Ipv4Addr, file: &Path, sendfile: bool, timeout: Duration) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to.into(), PORT), timeout)?;
    stream.set_write_timeout(Some(timeout))?;
    let mut file = File::open(file)?;
    if sendfile {
        // The standard library uses sendfile(2) for this pair.
        io::copy(&mut file, &mut stream)?;
    } else {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            stream.write_all(&buffer[..length])?;
        }
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(listener: &TcpListener, output: Option<PathBuf>, timeout: Duration) -> io::Result<u64> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(timeout))?;
    let mut output = output.map(File::create).transpose()?;
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    let deadline = Instant::now() + timeout;
    loop {
        let length = stream.read(&mut buffer)?;
        // A stream that trickles ends too; its sender then finds it closed.
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if length == 0 {
            return Ok(total);
        }
        if let Some(output) = &mut output {
            output.write_all(&buffer[..length])?;
        }
        total += length as u64;
    }
}
