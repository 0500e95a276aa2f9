//! What the stand-ins share: reading HTTP requests, answering them, and a guest's console.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vmm::microvm::{MicroVm, Report};

/// An error with its causes.
pub(crate) fn words(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Method, path, body; `None` of a client that only looks whether the socket is there.
pub(crate) fn read_request(stream: &mut UnixStream) -> Option<(String, String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let read = stream.read(&mut part).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&part[..read]);
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut headers);
        if let httparse::Status::Complete(at) = request.parse(&bytes).ok()? {
            let (method, path) = (request.method?.to_owned(), request.path?.to_owned());
            let length = request
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                .and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok())
                .unwrap_or(0);
            let mut body = bytes.split_off(at);
            while body.len() < length {
                let read = stream.read(&mut part).ok().filter(|read| *read > 0)?;
                body.extend_from_slice(&part[..read]);
            }
            return Some((method, path, body));
        }
    }
}

/// Answers; a client that is gone does not wait for it.
pub(crate) fn answer(stream: &mut UnixStream, status: &str, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nConnection: keep-alive\r\nContent-Length: {length}\r\n\r\n");
    let _ = stream.write_all((head + body).as_bytes());
}

/// Writes what a guest says, for as long as the process lives; ends the process when the guest has ended.
pub(crate) fn print(vm: Arc<Mutex<MicroVm>>, mut out: impl Write + Send + 'static) {
    std::thread::spawn(move || {
        let mut next = 0;
        loop {
            let (lines, ended) = {
                let vm = vm.lock().expect("no panic while it is held");
                (vm.console().since(next), vm.console().ended())
            };
            for seen in lines {
                next = seen.index + 1;
                let line = match seen.report {
                    Report::Tick { number, ok, bad, .. } => {
                        format!("TICK {number} {} bad {bad}", if ok { "OK" } else { "BAD" })
                    }
                    other => format!("{other:?}"),
                };
                // Whoever reads it may be gone: then nobody needs it.
                let _ = writeln!(out, "{line}");
            }
            let _ = out.flush();
            if let Some(reason) = ended {
                eprintln!("the guest has ended: {reason}");
                std::process::exit(1);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}
