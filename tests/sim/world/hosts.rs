//! The receivers' ends, and the network between.

use super::{SYMBOL_SIZE, World, sim};
use lab::sim::DeliveryKind;
use pages::VmId;
use pages::block::BlockLimits;
use receiver::check::{Place, check};
use receiver::residents::Residents;
use receiver::session::{Action, Session as Receiving, SessionConfig as ReceivingConfig};
use receiver::store::{Intake, Store, VmSpec};
use sender::prepare::Prepared;
use sender::session::Phase;
use std::sync::Arc;
use std::time::Duration;
use wire::control::{Accept, Message, Offer, ToHost, ToSender, VmOffer};

pub(super) struct Host {
    pub(super) store: Option<Store>,
    pub(super) session: Option<(Receiving, Arc<Intake>)>,
    pub(super) root: tempfile::TempDir,
    pub(super) finished: bool,
    /// When it was complete.
    pub(super) done_at: Option<Duration>,
    pub(super) in_flight_peak: u64,
    pub(super) refuses: Option<String>,
    /// What it holds of other images.
    pub(super) residents: Option<Residents>,
}

impl World {
    pub(super) fn connect(&mut self, host: usize) {
        if matches!(self.sender.phase(host), Phase::Failed { .. }) {
            return;
        }
        self.net.open_control(self.now, 0, sim(host));
        self.sender.handle_connected(host, self.now);
        let vms = (0..)
            .zip(&self.prepared.vms)
            .filter(|(_, vm)| vm.hosts.contains(u16::try_from(host).expect("few")));
        let vms = vms.map(|(id, vm)| VmOffer {
            vm: id,
            name: vm.name.clone(),
            file_len: vm.file_len,
            page_count: vm.source.page_count(),
            content_pages: self.prepared.content_pages(VmId(id)),
        });
        let offer = ToHost::Offer(Offer {
            version: wire::VERSION,
            session: 1,
            transfer: "sim".into(),
            host: format!("h{host}"),
            symbol_size_max: SYMBOL_SIZE,
            multicast_port: 1,
            ipv6: false,
            vms: vms.collect(),
            guests: Vec::new(),
            peers: Vec::new(),
            circles: Vec::new(),
        });
        self.tell_host(host, &offer);
    }

    /// A message to a host whose connection is down is lost, as on a real one; both ends learn of it.
    pub(super) fn tell_host(&mut self, host: usize, message: &ToHost) {
        let _ = self.net.send_control(self.now, 0, sim(host), message.encode());
    }

    fn tell_sender(&mut self, host: usize, message: &ToSender) {
        let _ = self.net.send_control(self.now, sim(host), 0, message.encode());
    }

    pub(super) fn deliver(&mut self, to: u16, kind: DeliveryKind) {
        match (to, kind) {
            (0, DeliveryKind::Control { from, bytes }) => {
                let message = ToSender::decode(&bytes).expect("the receiver speaks the protocol");
                let host = usize::from(from) - 1;
                let mut tap = self.tap.take();
                let heard = match &mut tap {
                    Some(tap) => tap(self.now, host, message),
                    None => vec![message],
                };
                self.tap = tap;
                for message in heard {
                    match message {
                        ToSender::Lacks { block } => {
                            self.sender.handle_lacks(host, wire::BlockId(block), self.now);
                        }
                        message => self.sender.handle_control(host, message, self.now),
                    }
                }
            }
            (0, DeliveryKind::ControlClosed { peer }) => {
                self.sender.handle_disconnected(usize::from(peer) - 1, self.now);
            }
            (to, DeliveryKind::Datagram { bytes, .. }) if to > 0 => {
                if let Some((session, _)) = &mut self.hosts[usize::from(to) - 1].session {
                    session.handle_datagram(&bytes);
                }
                self.drive_receiver(usize::from(to) - 1, false);
            }
            (to, DeliveryKind::Control { bytes, .. }) => self.receiver_control(usize::from(to) - 1, &bytes),
            (to, DeliveryKind::ControlClosed { peer: 0 }) => self.hosts[usize::from(to) - 1].session = None,
            _ => {}
        }
    }

    fn receiver_control(&mut self, host: usize, bytes: &[u8]) {
        let message = ToHost::decode(bytes).expect("the sender speaks the protocol");
        let now = self.now;
        if let ToHost::Offer(offer) = message {
            return self.offer(host, &offer);
        }
        let Some((session, intake)) = &mut self.hosts[host].session else { return };
        let intake = Arc::clone(intake);
        let vms: Vec<u16> = (0..).take(self.prepared.vms.len()).collect();
        let mut held = |digest: &wire::Digest| {
            intake.confirm_held(digest).then(|| complete(&intake, &vms, host, &self.prepared))
        };
        session.handle_control(now, message, &mut held).expect("protocol");
        self.drive_receiver(host, false);
    }

    fn offer(&mut self, host: usize, offer: &Offer) {
        if let Some(reason) = self.hosts[host].refuses.clone() {
            let refuse = ToSender::Refuse { cause: wire::control::RefuseCause::Store, reason };
            self.tell_sender(host, &refuse);
            return;
        }
        let specs: Vec<(VmId, VmSpec)> = (offer.vms.iter())
            .map(|vm| {
                let (name, file_len) = (vm.name.clone(), vm.file_len);
                (
                    VmId(vm.vm),
                    VmSpec { name, file_len, page_count: vm.page_count, content_pages: vm.content_pages },
                )
            })
            .collect();
        self.hosts[host].session = None;
        let store = self.hosts[host].store.as_ref().expect("running");
        let intake = Arc::new(store.begin("sim", &specs, false).expect("begin"));
        let digests = intake.held_digests();
        let held = ToSender::Held { digests };
        let accept =
            Accept { version: wire::VERSION, unicast: ([127, 0, 0, 1], 9).into(), credit_bytes: 8 << 20 };
        self.tell_sender(host, &held);
        self.tell_sender(host, &ToSender::Accept(accept));
        let mut session = Receiving::new(ReceivingConfig::new(SYMBOL_SIZE, offer.vms.len()));
        let vms: Vec<u16> = offer.vms.iter().map(|vm| vm.vm).collect();
        session.handle_complete_vms(&complete(&intake, &vms, host, &self.prepared));
        self.hosts[host].session = Some((session, intake));
    }

    pub(super) fn drive_receiver(&mut self, host: usize, drained: bool) {
        let now = self.now;
        let entry = &mut self.hosts[host];
        let Some((session, intake)) = &mut entry.session else { return };
        if drained {
            session.handle_drained(now);
            session.handle_timeout(now);
        }
        entry.in_flight_peak = entry.in_flight_peak.max(session.in_flight_bytes());
        let mut send = Vec::new();
        while let Some(action) = session.poll_action() {
            match action {
                Action::Send(message) => send.push(message),
                Action::Join { channel, .. } => {
                    self.net.join(now, sim(host), channel.0);
                    session.joined(channel, Ok(()));
                }
                Action::Leave { group } => {
                    let left = self.channels.iter().find(|spec| spec.group == Some(group)).expect("known");
                    self.net.leave(now, sim(host), left.id.0);
                }
                Action::Check(job) => {
                    let residents = entry.residents.as_ref();
                    let place = Place { intake, residents, limits: &BlockLimits::default() };
                    let checked = check(*job, place, &mut self.scratch);
                    session.handle_checked(now, checked);
                }
                Action::FinishVm(vm) => {
                    intake.finish(VmId(vm)).expect("finish");
                    session.handle_finished(vm);
                }
                Action::AllPlaced => {
                    entry.done_at = Some(now);
                    session.all_complete(Duration::ZERO, 0, 0);
                }
                Action::End { .. } => entry.finished = true,
            }
        }
        for message in send {
            self.tell_sender(host, &message);
        }
    }
}

fn complete(intake: &Intake, vms: &[u16], host: usize, prepared: &Prepared) -> Vec<u16> {
    let here = |vm: &u16| prepared.vms[usize::from(*vm)].hosts.contains(u16::try_from(host).expect("few"));
    vms.iter().copied().filter(here).filter(|vm| intake.is_complete(VmId(*vm))).collect()
}
