//! Requests to a VMM's API: HTTP/1.1 over a unix socket, one request a connection.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a request may take: memory of many GiB is written, or sent, during one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest answer; they have some kilobytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Headers of an answer; they have four.
const HEADERS_MAX: usize = 32;

/// Sends a request with a JSON body, unless that is empty. The answer's status and body.
pub(crate) fn request(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
    stream.set_write_timeout(Some(REQUEST_TIMEOUT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if !body.is_empty() {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    read_answer(&mut stream)
}

/// Reads one answer: status and body.
fn read_answer(stream: &mut impl Read) -> io::Result<(u16, Vec<u8>)> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let (status, body_at, length) = loop {
        let read = stream.read(&mut part)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&part[..read]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&bytes) {
            Ok(httparse::Status::Complete(body_at)) => {
                let length = response
                    .headers
                    .iter()
                    .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                    .map_or(Some(0), |header| std::str::from_utf8(header.value).ok()?.trim().parse().ok());
                let length: usize = length.ok_or_else(|| invalid("its Content-Length is no number"))?;
                break (response.code.unwrap_or(0), body_at, length);
            }
            Ok(httparse::Status::Partial) if bytes.len() <= ANSWER_BYTES_MAX => {}
            _ => return Err(invalid("this is no HTTP answer")),
        }
    };
    if length > ANSWER_BYTES_MAX {
        return Err(invalid("its answer is too long"));
    }
    while bytes.len() < body_at + length {
        let read = stream.read(&mut part)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&part[..read]);
    }
    Ok((status, bytes[body_at..body_at + length].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            (into[0], self.0) = (*first, rest);
            Ok(1)
        }
    }

    #[test]
    fn answers_are_read_whole_or_refused() {
        let answer = b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nContent-length: 2\r\n\r\n{}HTTP/1.1 200";
        assert_eq!(read_answer(&mut Slow(answer)).expect("whole"), (400, b"{}".to_vec()));
        assert_eq!(read_answer(&mut &answer[..]).expect("whole"), (400, b"{}".to_vec()));
        assert_eq!(read_answer(&mut &b"HTTP/1.1 204 \r\n\r\n"[..]).expect("whole"), (204, Vec::new()));
        for odd in [
            &b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\n{}"[..],
            b"HTTP/1.1 200 \r\nContent-Length: -5\r\n\r\n{}",
            b"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n{}",
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"",
        ] {
            assert!(read_answer(&mut Slow(odd)).is_err(), "{odd:?}");
        }
    }
}
