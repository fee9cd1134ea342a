//! How many handshakes there are at a time. One costs about a millisecond of a core, and a request's way shares the core:
//! when all peers come at once they come one after the other. Strangers, whose address is no node's, have turns of their own,
//! and so few places that whoever of them connects and says nothing keeps no peer out that comes from a node's address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::failure::{Failure, Reason};
use crate::metrics::LIMIT_REACHED;

/// At a time in one direction; further ones wait, within the handshake's time. 256: about a quarter of a second's work.
const AT_A_TIME: usize = 256;
/// Of those the strangers' part: an eighth. Behind NAT between nodes all peers are strangers, and share it.
const OF_STRANGERS: usize = AT_A_TIME / 8;
/// Of one address, with those that wait or have not said a word; further ones are refused. 128: a restarted peer has a link a
/// core, twice over while old and new run side by side; and no address can take all turns.
const OF_ONE_ADDRESS: usize = 128;
/// Connections of strangers that have not shaken hands; further ones are refused. 512: four addresses' worth, at a few KiB each.
const STRANGERS: usize = 4 * OF_ONE_ADDRESS;

pub(super) struct Gate {
    turns: Semaphore,
    strangers_turns: Semaphore,
    places: Mutex<Places>,
}

/// Handshakes that have begun, that wait or that have yet to begin.
#[derive(Default)]
struct Places {
    /// No longer than there are handshakes.
    by_address: HashMap<IpAddr, usize>,
    strangers: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(AT_A_TIME - OF_STRANGERS),
            strangers_turns: Semaphore::new(OF_STRANGERS),
            places: Mutex::default(),
        }
    }
}

/// A connection that may become a link, until it is one.
pub(super) struct Place<'a> {
    gate: &'a Gate,
    address: IpAddr,
    stranger: bool,
}

impl Gate {
    /// A place for a connection of `address`; `stranger`, when it is no node's.
    pub(super) fn place(&self, address: IpAddr, stranger: bool) -> Result<Place<'_>, Failure> {
        let refused = |limit, text| {
            limit_reached(limit);
            Err(Failure::new(Reason::Limit, text))
        };
        let mut places = self.places();
        if stranger && places.strangers >= STRANGERS {
            let text = format!(
                "{address} is no node's address, and {STRANGERS} connections of such are without a finished TLS handshake"
            );
            return refused("handshakes_of_strangers", text);
        }
        let of_address = places.by_address.entry(address).or_default();
        if *of_address >= OF_ONE_ADDRESS {
            let text = format!("{address} has {OF_ONE_ADDRESS} TLS handshakes under way; further ones are refused");
            return refused("handshakes_of_address", text);
        }
        *of_address += 1;
        places.strangers += usize::from(stranger);
        Ok(Place { gate: self, address, stranger })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Waits for a turn to shake hands; it is over when dropped.
    pub(super) async fn turn(&self) -> Result<SemaphorePermit<'_>, Failure> {
        let turns = if self.stranger { &self.gate.strangers_turns } else { &self.gate.turns };
        if let Ok(turn) = turns.try_acquire() {
            return Ok(turn);
        }
        limit_reached("handshakes");
        turns.acquire().await.map_err(|_| Failure::new(Reason::Limit, "no more handshakes are made"))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut places = self.gate.places();
        places.strangers -= usize::from(self.stranger);
        if let Some(of_address) = places.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                places.by_address.remove(&self.address);
            }
        }
    }
}

fn limit_reached(limit: &'static str) {
    metrics::counter!(LIMIT_REACHED, "limit" => limit).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: usize) -> IpAddr {
        IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()])
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_turns_and_turns_come_back() {
        let gate = Gate::default();
        let places: Vec<_> = (0..OF_ONE_ADDRESS).map(|_| gate.place(ip(1), false).unwrap()).collect();
        assert_eq!(gate.place(ip(1), false).err().unwrap().reason, Reason::Limit);
        let others: Vec<_> =
            (0..AT_A_TIME - OF_STRANGERS - OF_ONE_ADDRESS).map(|_| gate.place(ip(2), false).unwrap()).collect();
        let mut turns = Vec::new();
        for place in places.iter().chain(&others) {
            turns.push(place.turn().await.unwrap());
        }
        let third = gate.place(ip(3), false).unwrap();
        let mut waiting = Box::pin(third.turn());
        assert!(waits(waiting.as_mut()).await, "all turns are taken");
        turns.pop();
        drop(waiting.await.unwrap());
        drop(turns);
        drop((places, others, third));
        assert!(gate.places().by_address.is_empty());
    }

    /// Strangers that connect and say nothing, or that shake hands as slowly as they may.
    #[tokio::test]
    async fn strangers_keep_no_node_out() {
        let gate = Gate::default();
        let mut strangers = Vec::new();
        for number in 0..STRANGERS {
            strangers.push(gate.place(ip(1 + number / OF_ONE_ADDRESS), true).unwrap());
        }
        let refused = gate.place(ip(200), true).err().unwrap();
        assert_eq!(refused.reason, Reason::Limit);
        let mut turns = Vec::new();
        for place in strangers.iter().take(OF_STRANGERS) {
            turns.push(place.turn().await.unwrap());
        }
        assert!(waits(Box::pin(strangers[OF_STRANGERS].turn()).as_mut()).await, "their turns are taken");
        let node = gate.place(ip(250), false).unwrap();
        assert!(!waits(Box::pin(node.turn()).as_mut()).await, "a node's are not");
        drop(turns);
        drop(strangers);
        assert_eq!(gate.places().strangers, 0);
        gate.place(ip(200), true).unwrap();
    }

    /// Whether `future` has to wait.
    async fn waits<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
