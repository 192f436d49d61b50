//! Puts that are on their way to the store, as the stream of their outcomes: for an actor that has many at once.
//!
//! actix polls every future of an actor whenever anything happens to it, so that with a future for each put the cost of
//! one would grow with their number. Of these, only the ones whose outcome has come are polled.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures::future::{Join, Ready, join, ready};
use futures::stream::{FuturesUnordered, Stream};

use crate::payload::Payload;
use crate::store::writer::Put;
use crate::store::{Seq, StoreError};

/// The number of the record and where its body is, once it is durable.
pub type PutOutcome = Result<(Seq, Payload), StoreError>;

/// Puts under way, each with what its owner wants to know again when its outcome comes. Clones are the same.
pub struct Puts<T>(Rc<RefCell<Inner<T>>>);

struct Inner<T> {
    running: FuturesUnordered<Join<Put, Ready<T>>>,
    /// The owner's context, where it waits for the last of them.
    waiting: Option<Waker>,
}

/// A put's outcome, and what it was for.
pub type PutDone<T> = (PutOutcome, T);

impl<T> Puts<T> {
    /// Takes in one more. It is polled together with the stream, which the owner's context does after each message.
    pub fn add(&self, put: Put, what_for: T) {
        self.0.borrow_mut().running.push(join(put, ready(what_for)));
    }

    /// The outcomes that have come, for an owner who is told of something that follows from them. The owner's context
    /// polls the stream after each message, and so hears of those that come later.
    pub fn take_ready(&self) -> Vec<PutDone<T>> {
        let mut stream = self.clone();
        let mut cx = Context::from_waker(Waker::noop());
        let next = || match Pin::new(&mut stream).poll_next(&mut cx) {
            Poll::Ready(done) => done,
            Poll::Pending => None,
        };
        std::iter::from_fn(next).collect()
    }

    /// Resolves when the owner has taken in every outcome.
    pub fn all_settled(&self) -> impl Future<Output = ()> + use<T> {
        let puts = self.clone();
        poll_fn(move |cx| {
            let mut inner = puts.0.borrow_mut();
            if inner.running.is_empty() {
                return Poll::Ready(());
            }
            inner.waiting = Some(cx.waker().clone());
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
        Self(Rc::new(RefCell::new(Inner { running: FuturesUnordered::new(), waiting: None })))
    }
}

impl<T> std::fmt::Debug for Puts<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Puts").field(&self.0.borrow().running.len()).finish()
    }
}

impl<T> Stream for Puts<T> {
    type Item = PutDone<T>;

    /// Never ends: there may be another put.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut inner = self.0.borrow_mut();
        let Poll::Ready(Some(done)) = Pin::new(&mut inner.running).poll_next(cx) else { return Poll::Pending };
        if inner.running.is_empty() {
            inner.waiting.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(Some(done))
    }
}
