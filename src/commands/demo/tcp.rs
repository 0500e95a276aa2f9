//! The comparison: a plaintext TCP stream from the sender to each host, with the images that this host gets.

use super::place::Place;
use crate::cli::exit::{Coded, Exit, Outcome};
use crate::interrupt::Flag;
use anyhow::Context;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Looked up from after so many bytes, to see whether the demo was interrupted.
const STEP_BYTES: u64 = 4 << 20;
/// A peer that says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// What goes to one host: the sources, and where they are written there.
pub(super) struct Load {
    pub(super) host: u16,
    pub(super) images: Vec<(PathBuf, PathBuf)>,
}

/// Sends every host its images, side by side. The time from the start until the last byte is written.
pub(super) fn streams(place: &Place, loads: &[Load], interrupt: &Flag) -> Outcome<Duration> {
    let listen = |load: &Load| -> Outcome<TcpListener> {
        let address = SocketAddr::new(place.address(load.host).into(), 0);
        let bound = place.run(load.host, || TcpListener::bind(address)).and_then(|bound| bound);
        bound.with_context(|| format!("cannot listen on {address}")).or_exit(Exit::System)
    };
    let listeners: Vec<TcpListener> = loads.iter().map(listen).collect::<Outcome<_>>()?;
    let start = Instant::now();
    let carried: io::Result<()> = std::thread::scope(|scope| {
        let mut ends = Vec::new();
        for (load, listener) in loads.iter().zip(&listeners) {
            let to = listener.local_addr()?;
            ends.push(scope.spawn(move || receive(listener, load)));
            ends.push(scope.spawn(move || place.run(0, || send(to, load, interrupt)).and_then(|sent| sent)));
        }
        ends.into_iter().try_for_each(|end| end.join().expect("no thread of the comparison panics"))
    });
    carried.context("a TCP stream of the comparison failed").or_exit(Exit::System)?;
    Ok(start.elapsed())
}

fn send(to: SocketAddr, load: &Load, interrupt: &Flag) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, SILENCE_MAX)?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    for (source, _) in &load.images {
        let mut file = File::open(source)?;
        // The standard library uses sendfile(2) for this pair.
        while io::copy(&mut Read::by_ref(&mut file).take(STEP_BYTES), &mut stream)? > 0 {
            if interrupt.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }
    stream.flush()?;
    stream.shutdown(Shutdown::Write)
}

fn receive(listener: &TcpListener, load: &Load) -> io::Result<()> {
    let mut stream = accept(listener)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let mut buffer = vec![0; 256 << 10];
    for (source, target) in &load.images {
        let mut left = std::fs::metadata(source)?.len();
        let mut file = File::create(target)?;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = stream.read(&mut buffer[..most])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.write_all(&buffer[..read])?;
            left -= read as u64;
        }
    }
    Ok(())
}

/// A connection, or an error if none comes.
fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + SILENCE_MAX;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether two files are the same, byte for byte; a file that cannot be read is not.
pub(super) fn same_bytes(a: &Path, b: &Path) -> bool {
    let compare = || -> io::Result<bool> {
        let (mut a, mut b) = (File::open(a)?, File::open(b)?);
        if a.metadata()?.len() != b.metadata()?.len() {
            return Ok(false);
        }
        let mut buffers = (vec![0; 1 << 20], vec![0; 1 << 20]);
        loop {
            let length = a.read(&mut buffers.0)?;
            if length == 0 {
                return Ok(true);
            }
            b.read_exact(&mut buffers.1[..length])?;
            if buffers.0[..length] != buffers.1[..length] {
                return Ok(false);
            }
        }
    };
    compare().unwrap_or(false)
}
