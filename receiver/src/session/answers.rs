//! Answers to `Through`, and news of finished blocks.

use super::{Action, Asked, Session, Stage};
use std::time::Duration;
use wire::BlockId;
use wire::control::{self, Deficit, Report, ToSender};

impl Session {
    /// The driver has read all datagrams that the sockets held.
    pub fn handle_drained(&mut self, now: Duration) {
        self.answer(now, true);
    }

    /// Answers the `Through` messages that can be answered: nothing missing, or drained and waited for.
    pub(super) fn answer(&mut self, now: Duration, drained: bool) {
        let mut report = Report::default();
        let before = self.answered_seq;
        self.watch_quiet(now);
        while let Some(asked) = self.asked.front() {
            let arrived_all = asked.through.sent.iter().all(|(channel, sent)| {
                self.channels.get(channel).is_none_or(|channel| channel.arrivals.received() >= *sent)
            });
            let over = self.is_passed(asked) || now >= asked.quiet_since + self.config.quiet;
            let waited = drained && now >= asked.arrived + self.config.reorder_grace;
            let answerable = arrived_all || (over && waited);
            if !answerable {
                break;
            }
            let Some(Asked { through, .. }) = self.asked.pop_front() else { break };
            report.seq = through.seq;
            self.answered_seq = through.seq;
            report.received = through
                .sent
                .iter()
                .filter_map(|(channel, sent)| {
                    Some((*channel, self.channels.get(channel)?.arrivals.received_of(*sent)))
                })
                .collect();
            let deficits = through.blocks.iter().flat_map(|range| range.ids());
            report.deficits.extend(deficits.filter_map(|BlockId(id)| self.deficit(id)));
        }
        if report.seq != 0 {
            // What does not fit into one report goes before it, under the number of the last one: the question is answered
            // when all is said.
            while report.deficits.len() > wire::limits::DEFICITS_MAX {
                let deficits = report.deficits.drain(..wire::limits::DEFICITS_MAX).collect();
                self.send_report(Report { seq: before, deficits, ..Report::default() });
            }
            self.send_report(report);
        }
    }

    /// Whether later datagrams than those asked about have come on every channel: what is missing then is lost.
    pub(super) fn is_passed(&self, asked: &Asked) -> bool {
        let channels = asked.through.sent.iter();
        channels
            .into_iter()
            .all(|(id, sent)| self.channels.get(id).is_none_or(|channel| channel.arrivals.reached() >= *sent))
    }

    /// Notes since when nothing has come for the first question.
    fn watch_quiet(&mut self, now: Duration) {
        let Some(asked) = self.asked.front_mut() else { return };
        let channels = asked.through.sent.iter().filter_map(|(id, _)| self.channels.get(id));
        let received = channels.map(|channel| channel.arrivals.received()).sum();
        if received != asked.received {
            asked.received = received;
            asked.quiet_since = now;
        }
    }

    pub(super) fn deficit(&self, id: u64) -> Option<Deficit> {
        let entry = self.blocks.get(&id)?;
        match &entry.stage {
            Stage::Checking | Stage::Lacking => None,
            Stage::Expected => {
                let missing = u128::MAX >> (128 - entry.shape.symbols());
                Some(Deficit { block: id, missing, cauchy: 0, raptorq: 0 })
            }
            Stage::Collecting(collector) => {
                let (raptorq, cauchy) = collector.repair_counts();
                let (raptorq, cauchy) =
                    (u16::try_from(raptorq).unwrap_or(u16::MAX), u8::try_from(cauchy).unwrap_or(u8::MAX));
                Some(Deficit { block: id, missing: collector.missing_bitmap(), cauchy, raptorq })
            }
        }
    }

    pub(super) fn tell_done(&mut self, now: Duration, id: u64) {
        self.news.push(BlockId(id));
        self.news_since.get_or_insert(now);
    }

    pub(super) fn flush_news(&mut self) {
        if !self.news.is_empty() {
            self.send_report(Report { seq: self.answered_seq, ..Report::default() });
        }
    }

    /// Sends a report with the news of done blocks on top.
    pub(super) fn send_report(&mut self, mut report: Report) {
        self.news.sort_unstable();
        self.news.dedup();
        report.done = control::ranges(self.news.drain(..));
        self.news_since = None;
        let mut rest = report.done.split_off(report.done.len().min(wire::limits::RANGES_MAX));
        self.actions.push_back(Action::Send(ToSender::Report(report)));
        while !rest.is_empty() {
            let after = rest.split_off(rest.len().min(wire::limits::RANGES_MAX));
            let more = Report { seq: self.answered_seq, done: rest, ..Report::default() };
            self.actions.push_back(Action::Send(ToSender::Report(more)));
            rest = after;
        }
    }
}
