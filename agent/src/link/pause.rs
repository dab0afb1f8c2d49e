//! Whom to ask, in which order, and how long to wait between two rounds.

use std::collections::VecDeque;
use std::time::Duration;

use crate::address::Address;

const FIRST: Duration = Duration::from_millis(500);
const MOST: Duration = Duration::from_secs(30);
const SLOWEST: Duration = Duration::from_secs(10);
/// A stream that lived that long was no failure.
const WELL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct BackOff {
    next: Duration,
    /// The last that a master has said.
    lease: Option<Duration>,
}

impl BackOff {
    pub(super) const fn new(lease: Option<Duration>) -> Self {
        Self { next: FIRST, lease }
    }

    /// Before the next round. `random` is between 0 and 1: many agents that lost one master must not come back at once.
    pub(super) fn pause(&mut self, random: f64) -> Duration {
        // A master that starts again gives nodes two leases to come back.
        let most = self.lease.map_or(MOST, |lease| (lease / 2).min(MOST));
        let all = self.next.min(most);
        self.next = (all * 2).min(most);
        all.mul_f64(f64::midpoint(1.0, random))
    }

    /// For an address to take our call.
    pub(super) fn patience(&self) -> Duration {
        self.lease.map_or(SLOWEST, |lease| lease.clamp(FIRST * 2, SLOWEST))
    }

    pub(super) fn welcomed(&mut self, lease: Duration) {
        self.lease = Some(lease);
    }

    /// A stream has ended that lived for so long.
    pub(super) fn lived(&mut self, time: Duration) {
        if time >= WELL {
            self.next = FIRST;
        }
    }
}

/// Addresses of masters.
#[derive(Debug)]
pub(super) struct Masters {
    configured: Vec<Address>,
    /// In its place, as a master said.
    learnt: Vec<Address>,
    insecure: bool,
    /// Of this round, still to be asked.
    next: VecDeque<Address>,
    /// The last round asked those that were learnt, and in vain.
    in_vain: bool,
}

impl Masters {
    #[must_use]
    pub(super) fn new(configured: Vec<Address>, insecure: bool) -> Self {
        let next = configured.iter().cloned().collect();
        Self { configured, learnt: Vec::new(), insecure, next, in_vain: false }
    }

    /// The next one to ask. `None`: the round is over, and another one begins.
    pub(super) fn next(&mut self) -> Option<Address> {
        let next = self.next.pop_front();
        if next.is_none() {
            // What a master said may be as wrong as it is old: every other round goes by what a person said.
            self.in_vain = !self.in_vain && !self.learnt.is_empty();
            let round = if self.learnt.is_empty() || self.in_vain {
                &self.configured
            } else {
                &self.learnt
            };
            self.next = round.iter().cloned().collect();
        }
        next
    }

    /// A master has welcomed us: the next round begins with what it says.
    pub(super) fn welcomed(&mut self, masters: &[String]) {
        let told = self.read(masters);
        if !told.is_empty() {
            self.learnt = told;
        }
        let all = if self.learnt.is_empty() { &self.configured } else { &self.learnt };
        self.next = all.iter().cloned().collect();
        self.in_vain = false;
    }

    /// Those are to be asked before all others.
    pub(super) fn redirected(&mut self, masters: &[String]) {
        for address in self.read(masters).into_iter().rev() {
            self.next.retain(|other| *other != address);
            self.next.push_front(address);
        }
    }

    fn read(&self, masters: &[String]) -> Vec<Address> {
        let all = masters.iter().filter_map(|text| text.parse::<Address>().ok());
        all.filter(|address| self.insecure || !address.is_open()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(address: Option<Address>) -> String {
        address.map_or_else(String::new, |address| address.to_string())
    }

    fn round(masters: &mut Masters) -> Vec<String> {
        std::iter::from_fn(|| masters.next()).map(|address| address.to_string()).collect()
    }

    #[test]
    fn pauses_double_up_to_30_s_with_a_random_half() {
        let mut back_off = BackOff::new(None);
        let all: Vec<_> = (0..8).map(|_| back_off.pause(1.0).as_millis()).collect();
        assert_eq!(all, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert_eq!(back_off.pause(0.0), MOST / 2);
        back_off.lived(Duration::from_secs(9));
        assert_eq!(back_off.pause(1.0), MOST);
        back_off.lived(Duration::from_secs(10));
        assert_eq!(back_off.pause(0.5).as_millis(), 375);
    }

    #[test]
    fn who_knows_the_lease_is_back_before_it_ends() {
        let mut back_off = BackOff::new(Some(Duration::from_secs(3)));
        let all: Vec<_> = (0..4).map(|_| back_off.pause(1.0).as_millis()).collect();
        assert_eq!(all, [500, 1_000, 1_500, 1_500]);
        assert_eq!(back_off.patience(), Duration::from_secs(3));
        back_off.welcomed(Duration::from_millis(600));
        assert_eq!(back_off.pause(1.0).as_millis(), 300);
        assert_eq!(back_off.patience(), Duration::from_secs(1));
    }

    #[test]
    fn who_is_asked() {
        let configured = ["https://a:1", "https://b:1"].map(|text| text.parse().unwrap());
        let mut masters = Masters::new(configured.to_vec(), false);
        assert_eq!(round(&mut masters), ["https://a:1", "https://b:1"]);
        assert_eq!(text(masters.next()), "https://a:1");
        // Without TLS nobody sends us to another machine.
        let told = ["https://c:1", "http://d:1", "x", "https://b:1"].map(str::to_owned);
        masters.redirected(&told);
        assert_eq!(round(&mut masters), ["https://c:1", "https://b:1"]);
        masters.welcomed(&told[..1]);
        assert_eq!(round(&mut masters), ["https://c:1"]);
        assert_eq!(round(&mut masters), ["https://a:1", "https://b:1"]);
        assert_eq!(round(&mut masters), ["https://c:1"]);
        masters.welcomed(&[]);
        assert_eq!(round(&mut masters), ["https://c:1"]);
    }
}
