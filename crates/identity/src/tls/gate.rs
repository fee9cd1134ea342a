//! How many handshakes there are at a time. One costs about a millisecond of a core, and a request's way shares the core:
//! when all peers come at once they come one after the other.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::failure::{Failure, Reason};
use crate::metrics::LIMIT_REACHED;

/// At a time in one direction; further ones wait, within the handshake's time. 256: about a quarter of a second's work.
const AT_A_TIME: usize = 256;
/// Of one address, with those that wait; further ones are refused. 128: a restarted peer has a link a core, twice over
/// while old and new run side by side; and no address can take all turns.
const OF_ONE_ADDRESS: usize = 128;

pub(super) struct Gate {
    turns: Semaphore,
    /// Handshakes under way or waiting, by address; no longer than those.
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { turns: Semaphore::new(AT_A_TIME), by_address: Mutex::default() }
    }
}

/// A handshake's turn; over when dropped.
pub(super) struct Turn<'a> {
    _turn: SemaphorePermit<'a>,
    _place: Place<'a>,
}

struct Place<'a> {
    gate: &'a Gate,
    address: IpAddr,
}

impl Gate {
    /// Waits for a turn.
    pub(super) async fn enter(&self, address: IpAddr) -> Result<Turn<'_>, Failure> {
        let place = self.place(address)?;
        let turn = match self.turns.try_acquire() {
            Ok(turn) => turn,
            Err(_) => {
                limit_reached("handshakes");
                let closed = |_| Failure::new(Reason::Limit, "no more handshakes are made");
                self.turns.acquire().await.map_err(closed)?
            }
        };
        Ok(Turn { _turn: turn, _place: place })
    }

    fn place(&self, address: IpAddr) -> Result<Place<'_>, Failure> {
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let places = by_address.entry(address).or_default();
        if *places >= OF_ONE_ADDRESS {
            limit_reached("handshakes_of_address");
            let text = format!("{address} has {OF_ONE_ADDRESS} TLS handshakes under way; further ones are refused");
            return Err(Failure::new(Reason::Limit, text));
        }
        *places += 1;
        Ok(Place { gate: self, address })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut by_address = self.gate.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = by_address.get_mut(&self.address) {
            *places -= 1;
            if *places == 0 {
                by_address.remove(&self.address);
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

    #[tokio::test]
    async fn one_address_cannot_take_all_turns_and_turns_come_back() {
        let gate = Gate::default();
        let (one, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut turns = Vec::new();
        for _ in 0..OF_ONE_ADDRESS {
            turns.push(gate.enter(one).await.unwrap());
        }
        assert_eq!(gate.enter(one).await.err().unwrap().reason, Reason::Limit);
        for _ in 0..AT_A_TIME - OF_ONE_ADDRESS {
            turns.push(gate.enter(other).await.unwrap());
        }
        let third: IpAddr = "10.0.0.3".parse().unwrap();
        let mut waiting = Box::pin(gate.enter(third));
        assert!(futures_poll_once(waiting.as_mut()).await, "all turns are taken");
        turns.pop();
        waiting.await.unwrap();
        turns.clear();
        assert!(gate.by_address.lock().unwrap().is_empty());
    }

    /// Whether `future` has to wait.
    async fn futures_poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
