//! Puts that are on their way to the store, as the stream of their outcomes: for an actor that has many at once.
//!
//! actix polls every future of an actor whenever anything happens to it, so that with a future for each put the cost of
//! one would grow with their number. Of these, only the ones whose outcome has come are polled.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use futures::stream::{FuturesUnordered, Stream};

use crate::payload::Payload;
use crate::store::writer::Put;
use crate::store::{Seq, StoreError};

/// The number of the record and where its body is, once it is durable.
pub type PutOutcome = Result<(Seq, Payload), StoreError>;

/// Puts under way, each with what its owner wants to know again when its outcome comes. Clones are the same.
pub struct Puts<T>(Rc<RefCell<Inner<T>>>);

struct Inner<T> {
    running: FuturesUnordered<Running<T>>,
    /// Who waits for the last of them.
    waiting: Vec<Waker>,
}

struct Running<T> {
    put: Put,
    what_for: Option<T>,
}

impl<T: Unpin> Puts<T> {
    /// Takes in one more. It is polled together with the stream, which the owner's context does after each message.
    pub fn add(&self, put: Put, what_for: T) {
        self.0.borrow_mut().running.push(Running { put, what_for: Some(what_for) });
    }

    /// Resolves when the owner has taken in every outcome.
    pub fn all_settled(&self) -> impl Future<Output = ()> + use<T> {
        let puts = self.clone();
        poll_fn(move |cx| {
            let mut inner = puts.0.borrow_mut();
            if inner.running.is_empty() {
                return Poll::Ready(());
            }
            inner.waiting.push(cx.waker().clone());
            Poll::Pending
        })
    }
}

impl<T> Clone for Puts<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Default for Puts<T> {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(Inner { running: FuturesUnordered::new(), waiting: Vec::new() })))
    }
}

impl<T> std::fmt::Debug for Puts<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Puts").field(&self.0.borrow().running.len()).finish()
    }
}

/// A put's outcome, and what it was for.
pub struct PutDone<T> {
    pub what_for: T,
    pub outcome: PutOutcome,
}

impl<T: Unpin> Stream for Puts<T> {
    type Item = PutDone<T>;

    /// Never ends: there may be another put.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut inner = self.0.borrow_mut();
        let Poll::Ready(Some(done)) = Pin::new(&mut inner.running).poll_next(cx) else { return Poll::Pending };
        if inner.running.is_empty() {
            inner.waiting.drain(..).for_each(Waker::wake);
        }
        Poll::Ready(Some(done))
    }
}

impl<T: Unpin> Future for Running<T> {
    type Output = PutDone<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = ready!(Pin::new(&mut self.put).poll(cx));
        match self.what_for.take() {
            Some(what_for) => Poll::Ready(PutDone { what_for, outcome }),
            // it has told its outcome already
            None => Poll::Pending,
        }
    }
}
