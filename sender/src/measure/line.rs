//! A connection to a host that is asked about its images.

use net::control::{FrameReader, FrameWriter, connect, with_causes};
use net::pki::Identity;
use pages::measure::Fingerprints;
use std::net::SocketAddr;
use std::time::Duration;
use wire::control::measure::{Ask, PART_BYTES_MAX, Tell};
use wire::control::{Message, ToHost, ToSender};

/// A host that reads says so each second; one that says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often a host may say that it still reads: an hour and a half.
const BUSY_MAX: u32 = 5400;
/// A host's next step, or why there is none.
pub(crate) type Step<T> = Result<T, String>;

/// A host that is being asked.
pub(crate) struct Line {
    reader: FrameReader,
    writer: FrameWriter,
    bytes: u64,
}

impl Line {
    pub(crate) async fn open(address: SocketAddr, identity: &Identity, name: &str) -> Step<Self> {
        let control = connect(address, identity, name).await.map_err(|error| with_causes(&error))?;
        let (reader, writer) = control.split();
        Ok(Self { reader, writer, bytes: 0 })
    }

    /// Bytes of frames so far, both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) async fn ask(&mut self, ask: Ask) -> Step<()> {
        let frame = ToHost::Measure(ask).encode();
        self.bytes += frame.len() as u64;
        self.writer.write_frame(&frame).await.map_err(|error| with_causes(&error))
    }

    /// The next thing told; that the host is busy is no news.
    pub(crate) async fn told(&mut self) -> Step<Tell> {
        for _ in 0..BUSY_MAX {
            let frame = tokio::time::timeout(SILENCE_MAX, self.reader.read_frame()).await;
            let frame = frame.map_err(|_| format!("said nothing for {} s", SILENCE_MAX.as_secs()))?;
            let frame = frame.map_err(|error| with_causes(&error))?;
            let frame = frame.ok_or("closed the connection; is it of this version?")?;
            self.bytes += frame.len() as u64;
            match ToSender::decode(&frame).map_err(|error| error.to_string())? {
                ToSender::Measured(Tell::Busy) => {}
                ToSender::Measured(Tell::Failed { reason }) => return Err(reason),
                ToSender::Measured(tell) => return Ok(tell),
                _ => return Err(unexpected()),
            }
        }
        Err("reads for too long; measure fewer of its images".to_owned())
    }

    /// Asks for the fingerprints of the host's `contents`, ascending.
    pub(crate) async fn fingerprints(&mut self, bits: u8, contents: u64) -> Step<Vec<u64>> {
        self.ask(Ask::Fingerprints { bits }).await?;
        let mut code = Vec::new();
        let rice = loop {
            let Tell::Fingerprints { rice, code_bytes, part } = self.told().await? else {
                return Err(unexpected());
            };
            // An honest code has at most `bits + 2` bits a fingerprint.
            let most = contents.saturating_mul(u64::from(bits) + 2) / 8 + 1;
            if code_bytes > most || (part.is_empty() && code_bytes > 0) {
                return Err(format!("tells {code_bytes} bytes of fingerprints for {contents} contents"));
            }
            code.extend(part);
            if code.len() as u64 >= code_bytes {
                break rice;
            }
        };
        Fingerprints { bits, rice, count: contents, code }.decode().map_err(|error| error.to_string())
    }

    /// Tells which fingerprints the host is to say more about.
    pub(crate) async fn candidates(&mut self, candidates: &[bool]) -> Step<()> {
        for part in packed(candidates).chunks(PART_BYTES_MAX) {
            self.ask(Ask::Candidates { bits: part.to_vec() }).await?;
        }
        Ok(())
    }
}

/// A bit for each, lowest first.
fn packed(flags: &[bool]) -> Vec<u8> {
    let byte =
        |flags: &[bool]| flags.iter().enumerate().fold(0, |byte, (bit, flag)| byte | u8::from(*flag) << bit);
    flags.chunks(8).map(byte).collect()
}

/// Runs a step of all hosts side by side, keeps their order, and puts apart who failed.
pub(crate) async fn at_once<T, F>(
    steps: impl Iterator<Item = F>,
    failed: &mut Vec<(String, String)>,
) -> Vec<T>
where
    F: Future<Output = Result<T, (String, String)>>,
{
    let mut steps: Vec<_> = steps.map(Box::pin).map(Some).collect();
    let mut done: Vec<Option<T>> = steps.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (slot, result) in steps.iter_mut().zip(&mut done) {
            let Some(step) = slot else { continue };
            match step.as_mut().poll(context) {
                std::task::Poll::Pending => pending = true,
                std::task::Poll::Ready(Ok(value)) => (*slot, *result) = (None, Some(value)),
                std::task::Poll::Ready(Err(why)) => {
                    failed.push(why);
                    *slot = None;
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

pub(crate) fn unexpected() -> String {
    "answers something else than was asked; is it of this version?".to_owned()
}
