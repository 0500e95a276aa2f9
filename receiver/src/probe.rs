//! `scatter doctor`'s far end: join a group, count what arrives intact.

use net::control::FrameWriter;
use net::doctor::check_probe;
use net::interface::Interface;
use net::udp::{Family, UdpReceiver, Waker};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wire::control::{Message, Probe, ProbeResult, ToSender};

const RCVBUF_BYTES: usize = 1 << 20;

/// Serves one probe: says when the group is joined, listens, says what came.
pub(crate) async fn serve(
    probe: Probe,
    peer: SocketAddr,
    interface: Option<Interface>,
    writer: &mut FrameWriter,
) {
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let listening = tokio::task::spawn_blocking(move || listen(&probe, peer, interface, ready));
    // Without `ready` the group could not be joined: the result says why.
    let joined = is_ready.await.is_ok();
    if joined && writer.write_frame(&ToSender::ProbeReady.encode()).await.is_err() {
        return;
    }
    let Ok(result) = listening.await else { return };
    // The prober is told by the broken connection if this does not reach it.
    let _ = writer.write_frame(&ToSender::ProbeResult(result).encode()).await;
    let _ = writer.shutdown().await;
}

fn listen(
    probe: &Probe,
    peer: SocketAddr,
    interface: Option<Interface>,
    ready: tokio::sync::oneshot::Sender<()>,
) -> ProbeResult {
    let clock_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut result = ProbeResult { clock_s, ..ProbeResult::default() };
    if let Err(reason) = count(probe, peer, interface, ready, &mut result) {
        result.error = Some(wire::control::reason(&reason));
    }
    result
}

fn count(
    probe: &Probe,
    peer: SocketAddr,
    interface: Option<Interface>,
    ready: tokio::sync::oneshot::Sender<()>,
    result: &mut ProbeResult,
) -> Result<(), String> {
    let interface = match interface {
        Some(interface) => interface,
        None => Interface::for_peer(peer.ip()).map_err(|error| error.to_string())?,
    };
    result.interface.clone_from(&interface.name);
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let mut sockets = UdpReceiver::bind(probe.port, Family::of(probe.group), &interface, RCVBUF_BYTES)
        .map_err(|e| words(&e))?;
    sockets.join(probe.group).map_err(|e| words(&e))?;
    let waker = Waker::new().map_err(|e| words(&e))?;
    // The prober may be gone; listening is bounded anyway.
    let _ = ready.send(());
    let end = Instant::now() + Duration::from_millis(probe.listen_ms.into());
    while Instant::now() < end && result.intact + result.corrupt < probe.count {
        let wait = end.saturating_duration_since(Instant::now());
        let counted = sockets.recv_batch(wait, &waker, |_, payload| match check_probe(payload) {
            Ok(_) => result.intact += 1,
            Err(_) => result.corrupt += 1,
        });
        counted.map_err(|e| words(&e))?;
    }
    Ok(())
}
