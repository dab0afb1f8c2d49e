//! Certificates that count no more before their time is over: those of a holder below a number, which is one greater with each
//! withdrawal. So nothing has to be known of the single certificates, and no clock decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::who::{Holder, Who};
use crate::cluster::Change;
use crate::model::{Record, Withdrawal};

/// Of whoever directs, for all who let somebody in. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Withdrawn(Arc<watch::Sender<BTreeMap<String, u64>>>);

impl Default for Withdrawn {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Withdrawn {
    /// What was written down, in place of what is known here.
    pub(super) fn read(&self, records: &[Record]) {
        let all = records.iter().filter_map(|record| match record {
            Record::Withdrawal(one) => Some((one.holder.clone(), one.least)),
            _ => None,
        });
        self.0.send_replace(all.collect());
    }

    /// The least number of a holder's certificates that counts.
    pub(super) fn least(&self, holder: &str) -> u64 {
        self.0.borrow().get(holder).copied().unwrap_or_default()
    }

    /// What is to be saved before [`Self::add`], so that no certificate of now counts any more.
    pub(super) fn next(&self, holder: &str) -> Withdrawal {
        Withdrawal { holder: holder.to_owned(), least: self.least(holder) + 1 }
    }

    pub(super) fn add(&self, one: Withdrawal) {
        self.0.send_modify(|all| {
            all.insert(one.holder, one.least);
        });
    }

    pub(super) fn all(&self) -> Vec<Withdrawal> {
        let all = self.0.borrow();
        let one =
            |(holder, least): (&String, &u64)| Withdrawal { holder: holder.clone(), least: *least };
        all.iter().map(one).collect()
    }

    fn counts(&self, holder: &Holder) -> bool {
        holder.number >= self.least(&holder.uri())
    }

    /// As whom somebody is heard now.
    pub(super) fn judge(&self, who: &Who) -> Who {
        match who.holder() {
            Some(holder) if !self.counts(holder) => Who::Withdrawn(holder.clone()),
            _ => who.clone(),
        }
    }

    /// Until their certificate counts no more; never, if it did not at first, or if there is none.
    pub(super) async fn end(&self, who: &Who) {
        let Some(holder) = who.holder().filter(|holder| self.counts(holder)) else {
            return std::future::pending().await;
        };
        let (uri, mut changes) = (holder.uri(), self.0.subscribe());
        let is_less = |least: &u64| holder.number < *least;
        // The sender is ours.
        let _ = changes.wait_for(|all| all.get(&uri).is_some_and(is_less)).await;
    }
}

impl From<Withdrawal> for Change {
    fn from(one: Withdrawal) -> Self {
        Self::Put(Record::Withdrawal(one))
    }
}
