//! Replies that an actor sends after its handler has returned. There is no future per request, because actix polls
//! every future of an actor at every event.

use std::cell::RefCell;
use std::rc::Rc;

use actix::dev::{MessageResponse, OneshotSender};
use actix::{Actor, Message};

/// The result of a handler that replies later, through a [`Reply`].
pub struct Deferred<T>(Rc<RefCell<State<T>>>);

/// Sends one reply. If it is dropped instead, the sender of the message gets [`actix::MailboxError`].
pub struct Reply<T>(Rc<RefCell<State<T>>>);

enum State<T> {
    /// The handler has not returned, and there is no reply yet.
    Open,
    /// The handler has returned; `None` if the sender wants no reply.
    Waiting(Option<OneshotSender<T>>),
    Replied(T),
    Over,
}

/// A reply, and the result that its handler returns.
pub fn deferred<T>() -> (Reply<T>, Deferred<T>) {
    let state = Rc::new(RefCell::new(State::Open));
    (Reply(Rc::clone(&state)), Deferred(state))
}

impl<T> Deferred<T> {
    /// A reply that is given at once.
    pub fn now(value: T) -> Self {
        let (reply, deferred) = deferred();
        reply.send(value);
        deferred
    }
}

impl<T> Reply<T> {
    /// Replies. If the sender of the message has hung up, the value is dropped.
    pub fn send(self, value: T) {
        let state = self.0.replace(State::Over);
        match state {
            State::Open => drop(self.0.replace(State::Replied(value))),
            State::Waiting(Some(requester)) => drop(requester.send(value)),
            State::Waiting(None) | State::Replied(_) | State::Over => {}
        }
    }

    /// Whether the sender of the message has hung up.
    pub fn is_closed(&self) -> bool {
        match &*self.0.borrow() {
            State::Open => false,
            State::Waiting(requester) => requester.as_ref().is_none_or(OneshotSender::is_closed),
            State::Replied(_) | State::Over => true,
        }
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        // Keeps a reply that the handler has not returned yet. Dropping the sender of a waiting one ends its wait.
        let state = self.0.replace(State::Over);
        if let State::Replied(_) = state {
            self.0.replace(state);
        }
    }
}

impl<T> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("is_closed", &self.is_closed()).finish()
    }
}

impl<A: Actor, M: Message> MessageResponse<A, M> for Deferred<M::Result> {
    fn handle(self, _: &mut A::Context, requester: Option<OneshotSender<M::Result>>) {
        let state = self.0.replace(State::Over);
        match state {
            State::Open => drop(self.0.replace(State::Waiting(requester))),
            State::Replied(value) => drop(requester.map(|requester| requester.send(value))),
            // There will be no reply. Dropping `requester` reports that.
            State::Waiting(_) | State::Over => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use actix::{Actor, Addr, Context, Handler, Message};

    use super::*;

    #[derive(Message)]
    #[rtype(result = "u32")]
    enum Ask {
        AtOnce,
        Later,
        Never,
    }

    #[derive(Message)]
    #[rtype(result = "usize")]
    struct ReplyToAll;

    #[derive(Default)]
    struct Answerer(Vec<Reply<u32>>);

    impl Actor for Answerer {
        type Context = Context<Self>;
    }

    impl Handler<Ask> for Answerer {
        type Result = Deferred<u32>;

        fn handle(&mut self, ask: Ask, _: &mut Self::Context) -> Self::Result {
            let (reply, later) = deferred();
            match ask {
                Ask::AtOnce => reply.send(1),
                Ask::Later => self.0.push(reply),
                Ask::Never => {}
            }
            later
        }
    }

    impl Handler<ReplyToAll> for Answerer {
        type Result = usize;

        fn handle(&mut self, _: ReplyToAll, _: &mut Self::Context) -> usize {
            let gone = self.0.iter().filter(|reply| reply.is_closed()).count();
            self.0.drain(..).for_each(|reply| reply.send(2));
            gone
        }
    }

    #[test]
    fn a_reply_comes_at_once_later_or_never() {
        actix::System::new().block_on(async {
            let answerer: Addr<Answerer> = Answerer::default().start();
            assert_eq!(answerer.send(Ask::AtOnce).await, Ok(1));
            assert!(answerer.send(Ask::Never).await.is_err());
            let gone = answerer.send(Ask::Later);
            let mut gone = Box::pin(gone);
            assert!(futures::poll!(&mut gone).is_pending());
            let waiting = answerer.send(Ask::Later);
            let reply_to_all = async {
                // In the mailbox after both.
                tokio::task::yield_now().await;
                drop(gone);
                answerer.send(ReplyToAll).await
            };
            let (reply, gone) = futures::join!(waiting, reply_to_all);
            assert_eq!((reply, gone), (Ok(2), Ok(1)));
        });
    }
}
