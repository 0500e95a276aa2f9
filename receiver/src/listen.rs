//! Connections of senders: a task each, which awaits the offer and then passes messages both ways.

use crate::board::Board;
use crate::endings::Endings;
use crate::link::{Link, link};
use crate::shelf::Shelves;
use crossbeam_channel::{Sender, TrySendError};
use net::control::Listener;
use net::interface::Interface;
use net::pki::Role;
use net::udp::{Family, Waker};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use wire::control::measure::Ask;
use wire::control::{Message, Offer, ToHost, ToSender};

/// How long a new connection may take to make its offer.
const OFFER_WAIT: Duration = Duration::from_secs(10);

/// A connection that has made its offer.
pub(crate) struct Incoming {
    pub(crate) peer: String,
    pub(crate) peer_address: SocketAddr,
    pub(crate) local_address: SocketAddr,
    pub(crate) offer: Offer,
    pub(crate) link: Link,
}

/// What the tasks share.
pub(crate) struct Shared {
    pub(crate) out: Sender<Result<Incoming, String>>,
    pub(crate) waker: Arc<Waker>,
    pub(crate) interface: Option<Interface>,
    pub(crate) agent: crate::measure::Agent,
    pub(crate) board: Board,
    pub(crate) shelves: Shelves,
    pub(crate) endings: Endings,
}

/// Accepts connections, each with a task of its own.
pub(crate) async fn listen(mut listener: Listener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((control, peer)) => {
                tokio::spawn(converse(control, peer, Arc::clone(&shared)));
            }
            Err(error) => {
                if let Err(TrySendError::Disconnected(_)) = shared.out.try_send(Err(error.to_string())) {
                    return;
                }
            }
        }
    }
}

/// One connection: its first message says what it is for.
async fn converse(control: net::control::Control, peer: String, shared: Arc<Shared>) {
    let (peer_address, caller) = (control.peer().addr, control.caller());
    let Ok(local_address) = control.local_addr() else { return };
    let (mut reader, mut writer) = control.split();
    let first = tokio::time::timeout(OFFER_WAIT, reader.read_frame()).await;
    let first = match first {
        Ok(Ok(Some(frame))) => ToHost::decode(&frame).map_err(|error| error.to_string()),
        Ok(Ok(None)) => return,
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no offer in time".into()),
    };
    if caller == Role::Receiver {
        // Another receiver may ask for blocks of its circles, and nothing else.
        return match first {
            Ok(ToHost::Fetch(fetch)) => {
                crate::fetch::serve(fetch, &peer, &shared.shelves, &mut reader, &mut writer).await;
            }
            Ok(_) => refused(&shared, &peer, "a receiver may only ask for blocks"),
            Err(reason) => refused(&shared, &peer, &reason),
        };
    }
    let offer = match first {
        Ok(ToHost::Offer(offer)) => offer,
        Ok(ToHost::Probe(probe)) => {
            crate::probe::serve(probe, peer_address, shared.interface.clone(), &mut writer).await;
            return;
        }
        Ok(ToHost::Measure(Ask::Start(start))) => {
            return crate::measure::serve(start, &shared.agent, &mut reader, &mut writer).await;
        }
        Ok(ToHost::Measure(Ask::Residents(start))) => {
            return crate::residents::serve(start, &peer, &shared.agent, &mut reader, &mut writer).await;
        }
        Ok(ToHost::Status) => {
            // Who asks is told by the broken connection if this does not reach it.
            let _ = writer.write_frame(&ToSender::Status(shared.board.read()).encode()).await;
            let _ = writer.shutdown().await;
            return;
        }
        Ok(ToHost::EndClones(end)) => {
            let answered = shared.endings.ask(end);
            shared.waker.wake();
            if let Ok(status) = answered.await {
                let _ = writer.write_frame(&ToSender::Status(status).encode()).await;
            }
            let _ = writer.shutdown().await;
            return;
        }
        Ok(_) => return refused(&shared, &peer, "its first message is no offer"),
        Err(reason) => return refused(&shared, &peer, &reason),
    };
    let (link, mut ends) = link();
    let incoming = Incoming { peer, peer_address, local_address, offer, link };
    // A full queue of offers: this one's connection is closed, and its sender tries again.
    if shared.out.try_send(Ok(incoming)).is_err() {
        return;
    }
    shared.waker.wake();
    let mut frames = std::mem::replace(&mut ends.frames, tokio::sync::mpsc::channel(1).1);
    let reading = async {
        let reason = loop {
            match reader.read_frame().await {
                Ok(Some(frame)) => {
                    let room = ends.room(frame.len()).await;
                    let message = match ToHost::decode(&frame) {
                        Ok(message) => message,
                        Err(error) => break error.to_string(),
                    };
                    if !ends.hand_over(Ok((message, room))) {
                        return;
                    }
                    shared.waker.wake();
                }
                Ok(None) => break "the sender closed the connection".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        // Nobody listens if the transfer has ended.
        ends.hand_over(Err(reason));
        shared.waker.wake();
    };
    let writing = async {
        let mut batch = Vec::new();
        while frames.recv_many(&mut batch, 64).await > 0 {
            let slices: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
            if writer.write_frames(&slices).await.is_err() {
                break;
            }
            batch.clear();
        }
        let _ = writer.shutdown().await;
    };
    tokio::join!(reading, writing);
}

fn refused(shared: &Shared, peer: &str, reason: &str) {
    // Nobody listens if the service has ended, and not everything has to be told if there is too much of it.
    let _ = shared.out.try_send(Err(format!("{peer}: {reason}")));
}

/// An address of the interface that others can send to.
pub(crate) fn address_of(interface: &Interface, family: Family) -> Option<IpAddr> {
    match family {
        Family::V4 => interface.v4.first().copied().map(IpAddr::V4),
        Family::V6 => interface.v6.iter().copied().find(|v6| !v6.is_unicast_link_local()).map(IpAddr::V6),
    }
}
