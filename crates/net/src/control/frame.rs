//! Frames: a length of 32 bits, little-endian, and so many bytes.

use super::{ControlError, Peer, tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// Bytes of the longest frame: a block of 1 MiB and room for what is said of it.
pub const FRAME_BYTES_MAX: usize = (1 << 20) + 4096;
const LENGTH_BYTES: usize = 4;
/// Memory grows by this as bytes come in, never by what a peer announces.
const READ_BYTES: usize = 64 << 10;
/// Below this much consumed memory at the front it is not worth moving the rest.
const COMPACT_BYTES: usize = 256 << 10;

/// The incoming direction.
#[derive(Debug)]
pub struct FrameReader {
    read: ReadHalf<TlsStream<TcpStream>>,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were handed out already.
    consumed: usize,
    peer: Peer,
}

impl FrameReader {
    pub(super) fn new(read: ReadHalf<TlsStream<TcpStream>>, peer: Peer) -> Self {
        Self { read, buffer: Vec::new(), consumed: 0, peer }
    }

    /// The peer.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The next frame; `None` when the peer has shut its direction down in order. May be cancelled without loss.
    ///
    /// # Errors
    /// The connection broke or ended within a frame or without a farewell; a frame over [`FRAME_BYTES_MAX`].
    pub async fn read_frame(&mut self) -> Result<Option<Vec<u8>>, ControlError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_BYTES);
            let read = self.read.read_buf(&mut self.buffer).await;
            let bytes = read.map_err(|error| tls::broken(error, self.peer.clone(), "reading"))?;
            if bytes == 0 {
                let whole = self.buffer.len() == self.consumed;
                return if whole { Ok(None) } else { Err(ControlError::Lost { peer: self.peer.clone() }) };
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Vec<u8>>, ControlError> {
        let rest = &self.buffer[self.consumed..];
        let Some((length, body)) = rest.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Err(ControlError::FrameTooLong { peer: self.peer.clone(), bytes: length });
        }
        let Some(frame) = body.get(..length) else { return Ok(None) };
        let frame = frame.to_vec();
        self.consumed += LENGTH_BYTES + length;
        if self.consumed == self.buffer.len() {
            self.buffer.clear();
            self.consumed = 0;
        } else if self.consumed >= COMPACT_BYTES {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        Ok(Some(frame))
    }
}

/// The outgoing direction.
#[derive(Debug)]
pub struct FrameWriter {
    write: WriteHalf<TlsStream<TcpStream>>,
    /// Frames taken, and not yet written whole.
    pending: Vec<u8>,
    /// Bytes of `pending` that were written.
    written: usize,
    peer: Peer,
}

impl FrameWriter {
    pub(super) fn new(write: WriteHalf<TlsStream<TcpStream>>, peer: Peer) -> Self {
        Self { write, pending: Vec::new(), written: 0, peer }
    }

    /// The peer.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Sends one frame. If cancelled, the frame still counts as taken: the next call writes the rest of it first.
    ///
    /// # Errors
    /// The connection broke; a frame over [`FRAME_BYTES_MAX`].
    pub async fn write_frame(&mut self, frame: &[u8]) -> Result<(), ControlError> {
        self.take(frame)?;
        self.flush().await
    }

    /// Sends several frames together: fewer records and system calls than one by one.
    ///
    /// # Errors
    /// As [`Self::write_frame`]; no frame is sent if one is too long.
    pub async fn write_frames<F: AsRef<[u8]>>(
        &mut self,
        frames: impl IntoIterator<Item = F>,
    ) -> Result<(), ControlError> {
        let before = self.pending.len();
        for frame in frames {
            if let Err(error) = self.take(frame.as_ref()) {
                self.pending.truncate(before);
                return Err(error);
            }
        }
        self.flush().await
    }

    /// Sends what is left, then tells the peer that nothing more follows. The other direction stays open.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn shutdown(&mut self) -> Result<(), ControlError> {
        self.flush().await?;
        self.write.shutdown().await.map_err(|error| tls::broken(error, self.peer.clone(), "shutting down"))
    }

    fn take(&mut self, frame: &[u8]) -> Result<(), ControlError> {
        let too_long = || ControlError::FrameTooLong { peer: self.peer.clone(), bytes: frame.len() };
        if frame.len() > FRAME_BYTES_MAX {
            return Err(too_long());
        }
        let length = u32::try_from(frame.len()).map_err(|_| too_long())?;
        self.pending.extend_from_slice(&length.to_le_bytes());
        self.pending.extend_from_slice(frame);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), ControlError> {
        let broken = |error, peer: &Peer| tls::broken(error, peer.clone(), "writing");
        while self.written < self.pending.len() {
            let write = self.write.write(&self.pending[self.written..]).await;
            self.written += write.map_err(|error| broken(error, &self.peer))?;
        }
        self.pending.clear();
        self.written = 0;
        self.write.flush().await.map_err(|error| broken(error, &self.peer))
    }
}
