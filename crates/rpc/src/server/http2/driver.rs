//! The task of one connection.
//!
//! A round reads what the socket has, starts the calls that came, polls the calls that were woken, and writes what
//! they answered. The task sleeps when a round found nothing to do. Calls woken while the task is awake are seen by the
//! next round without waking it again.
//!
//! The end of a connection: the peer closes or breaks the protocol; it is silent and does not answer a ping; or the server
//! stops, and then it first asks the peer to open no more streams, finishes the unary calls and ends the streaming ones.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::calls::{CallFuture, Calls, Done};
use super::session::{Event, Session, Surroundings};
use crate::Status;
use crate::server::service::{Answer, BoxFuture, Call, Service};
use crate::server::stats::Counters;
use crate::server::stop::Stop;
use crate::server::stream::{Bell, Rung};
use crate::server::{ServerConfig, browser, http1};

/// Holds one whole frame at least.
const INPUT_BYTES: usize = 32 << 10;
/// With more than this to write, nothing is read.
const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// After so many rounds others have their turn.
const ROUNDS_MAX: usize = 32;
/// How long a stopping server waits for the peer to hear of it.
const FAREWELL: Duration = Duration::from_secs(1);

pub(in crate::server) struct Driver<IO, S> {
    io: IO,
    service: Arc<S>,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    counters: Arc<Counters>,
    stop: Arc<Stop>,
    session: Session,
    calls: Calls,
    bell: Arc<Bell>,
    rung: Rung,
    input: Box<[u8]>,
    input_filled: usize,
    /// What came with the preface has not been looked at.
    unfed: bool,
    /// Earliest first. Calls that are over stay in it until their time.
    deadlines: BinaryHeap<Reverse<(Instant, u32)>>,
    timer: Pin<Box<Sleep>>,
    last_read: Instant,
    last_refill: Instant,
    pinged: Option<Instant>,
    ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// The peer was asked to open no more streams.
    Announced(Instant),
    /// Streams are not taken any more; those under way end.
    Refusing(Instant),
    /// What is in the output is written, then the socket is closed.
    Flushing(Instant),
}

impl<IO: AsyncRead + AsyncWrite + Unpin, S: Service> Driver<IO, S> {
    /// A connection whose peer has said the preface, followed by `input`.
    pub(in crate::server) fn new(
        io: IO,
        input: &[u8],
        service: Arc<S>,
        peer: SocketAddr,
        config: Arc<ServerConfig>,
        counters: Arc<Counters>,
        stop: Arc<Stop>,
    ) -> Self {
        let bell = Arc::new(Bell::default());
        stop.add(&bell);
        let now = Instant::now();
        let mut buffer = vec![0; INPUT_BYTES].into_boxed_slice();
        buffer[..input.len()].copy_from_slice(input);
        Driver {
            io,
            service,
            peer,
            session: Session::new(config.limits(), counters.held.clone()),
            counters,
            stop,
            calls: Calls::new(bell.clone()),
            bell,
            rung: Rung::default(),
            input: buffer,
            input_filled: input.len(),
            unfed: !input.is_empty(),
            deadlines: BinaryHeap::new(),
            timer: Box::pin(tokio::time::sleep(config.keepalive_interval)),
            config,
            last_read: now,
            last_refill: now,
            pinged: None,
            ending: Ending::No,
        }
    }

    /// Reads once. Says whether there was something; `Err` when the connection is over.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, ()> {
        if self.session.out.len() > BACKLOG_BYTES_MAX || matches!(self.ending, Ending::Flushing(_)) {
            return Ok(false);
        }
        let mut buffer = ReadBuf::new(&mut self.input[self.input_filled..]);
        match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
            Poll::Pending if std::mem::take(&mut self.unfed) => {}
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(_)) => return Err(()),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(()),
            Poll::Ready(Ok(())) => self.input_filled += buffer.filled().len(),
        }
        let now = Instant::now();
        self.last_read = now;
        if now.duration_since(self.last_refill) > Duration::from_secs(1) {
            self.last_refill = now;
            self.session.refill_patience();
        }
        let resolve = |path: &str| self.service.resolve(path);
        let around = Surroundings { resolve: &resolve, now, bell: &self.bell };
        match self.session.feed(&self.input[..self.input_filled], &around) {
            Ok(used) => {
                self.input.copy_within(used..self.input_filled, 0);
                self.input_filled -= used;
            }
            Err(fatal) => {
                tracing::debug!(target: "chainfire_network", "Closing a connection that broke the protocol, addr={} reason={}", self.peer, fatal.text);
                self.session.say_fatal(&fatal);
                self.session.close_all();
                self.flush(now);
            }
        }
        Ok(true)
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.session.events.pop_front() {
            match event {
                Event::Unary { stream, method, metadata, deadline, message } => {
                    self.counters.call_started();
                    if let Some(refusal) = browser::refuses_call(&metadata) {
                        self.session.respond(stream, Err(refusal));
                        continue;
                    }
                    let call = Call { peer: self.peer, metadata, deadline };
                    match self.service.unary(method, call, message) {
                        Answer::Ready(result) => self.session.respond(stream, result),
                        Answer::Later(future) => self.start(stream, deadline, CallFuture::Unary(future)),
                    }
                }
                Event::Streaming { stream, method, metadata, deadline, channel } => {
                    self.counters.call_started();
                    if let Some(refusal) = browser::refuses_call(&metadata) {
                        self.start(stream, deadline, CallFuture::Streaming(Box::pin(async { Err(refusal) })));
                        continue;
                    }
                    let call = Call { peer: self.peer, metadata, deadline };
                    let future = self.service.streaming(method, call, channel.requests(), channel.responses());
                    self.start(stream, deadline, CallFuture::Streaming(future));
                }
                Event::Http { stream, request, channel } => {
                    let call = Call { peer: self.peer, metadata: Default::default(), deadline: None };
                    let answer: BoxFuture<_> = match browser::refusal(request.headers(), &self.config.names) {
                        Some(why) => {
                            let refused = http1::refused(http::StatusCode::FORBIDDEN, &why);
                            Box::pin(async { refused })
                        }
                        None => self.service.http(call, *request),
                    };
                    let mut responses = channel.responses();
                    let future = async move {
                        let (head, mut body) = answer.await.into_parts();
                        channel.set_http_head(head.status.as_u16(), head.headers);
                        while let Some(Ok(frame)) = body.frame().await {
                            match frame.into_data() {
                                Ok(data) if !data.is_empty() => responses.send(data).await?,
                                _ => {}
                            }
                        }
                        Ok(())
                    };
                    self.start(stream, None, CallFuture::Streaming(Box::pin(future)));
                }
                Event::Refused => self.counters.stream_refused(),
                Event::Gone { slot, stream } => self.calls.remove(slot, stream),
            }
        }
    }

    fn start(&mut self, stream: u32, deadline: Option<Instant>, future: CallFuture) {
        let slot = self.calls.insert(stream, future);
        self.session.attach(stream, slot);
        self.poll_call(slot);
        if let Some(deadline) = deadline
            && self.session.is_open(stream)
        {
            self.deadlines.push(Reverse((deadline, stream)));
            if self.deadlines.len() > 1024 + 2 * self.session.streams_open() {
                self.deadlines.retain(|Reverse((_, stream))| self.session.is_open(*stream));
            }
            if deadline < self.timer.deadline().into_std() {
                self.timer.as_mut().reset(deadline.into());
            }
        }
    }

    fn poll_call(&mut self, slot: usize) {
        match self.calls.poll(slot) {
            Some((stream, Done::Unary(result))) => self.session.respond(stream, result),
            Some((stream, Done::Streaming(result))) => self.session.finish(stream, result),
            None => {}
        }
    }

    /// Polls the calls that were woken and looks at the streams whose handlers did something. Says whether there were any.
    fn poll_rung(&mut self) -> bool {
        let mut rung = std::mem::take(&mut self.rung);
        self.bell.collect(&mut rung);
        let any = !rung.is_empty();
        for slot in rung.slots.drain(..) {
            self.poll_call(slot);
        }
        for stream in rung.streams.drain(..) {
            self.session.touched(stream);
        }
        self.rung = rung;
        any
    }

    /// What time brings: deadlines, pings to a silent peer, the steps of a graceful end.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Result<(), ()> {
        if self.stop.is_stopping() {
            self.step_to_the_end();
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Ending::Flushing(at) = self.ending
                && now >= at + FAREWELL
            {
                return Err(());
            }
            let mut next = now + self.config.keepalive_interval;
            while let Some(&Reverse((deadline, stream))) = self.deadlines.peek() {
                if deadline > now && self.session.is_open(stream) {
                    next = next.min(deadline);
                    break;
                }
                self.deadlines.pop();
                self.session.fail(stream, &Status::deadline_exceeded());
            }
            let silent = now.duration_since(self.last_read);
            match self.pinged {
                Some(_) if silent < self.config.keepalive_interval => self.pinged = None,
                Some(at) if now.duration_since(at) >= self.config.keepalive_timeout => return Err(()),
                Some(at) => next = next.min(at + self.config.keepalive_timeout),
                None if silent >= self.config.keepalive_interval => {
                    self.session.ping();
                    self.pinged = Some(now);
                    next = next.min(now + self.config.keepalive_timeout);
                }
                None => next = next.min(self.last_read + self.config.keepalive_interval),
            }
            if let Ending::Announced(at) | Ending::Refusing(at) | Ending::Flushing(at) = self.ending {
                next = next.min(at + FAREWELL).max(now + Duration::from_millis(10));
            }
            self.timer.as_mut().reset(next.into());
        }
        Ok(())
    }

    fn step_to_the_end(&mut self) {
        let now = Instant::now();
        match self.ending {
            Ending::No => {
                self.session.announce_end();
                self.session.ping();
                self.ending = Ending::Announced(now);
                self.timer.as_mut().reset((now + FAREWELL).into());
            }
            Ending::Announced(at) if self.session.ping_acknowledged || now >= at + FAREWELL => {
                self.session.refuse_streams();
                self.ending = Ending::Refusing(now);
                self.timer.as_mut().reset((now + FAREWELL).into());
            }
            Ending::Refusing(at) => {
                let patient = now < at + self.config.drain_timeout;
                if !(patient && self.session.unary_open()) {
                    for stream in self.session.stream_ids() {
                        self.session.fail(stream, &self.config.stopping);
                    }
                    self.flush(now);
                }
            }
            Ending::Announced(_) | Ending::Flushing(_) => {}
        }
    }

    fn flush(&mut self, now: Instant) {
        self.ending = Ending::Flushing(now);
        self.timer.as_mut().reset((now + FAREWELL).into());
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, ()> {
        let mut busy = self.read(cx)?;
        self.handle_events();
        busy |= self.poll_rung();
        self.handle_events();
        self.session.pump();
        match self.session.out.poll_write(&mut self.io, cx) {
            Poll::Ready(Ok(())) => busy |= self.session.may_pump(),
            Poll::Ready(Err(_)) => return Err(()),
            Poll::Pending => {}
        }
        Ok(busy)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, S: Service> Future for Driver<IO, S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.bell.awaken(cx);
        if this.poll_time(cx).is_err() {
            return Poll::Ready(());
        }
        for _ in 0..ROUNDS_MAX {
            let Ok(busy) = this.round(cx) else { return Poll::Ready(()) };
            if this.stop.is_stopping() {
                this.step_to_the_end();
            }
            if matches!(this.ending, Ending::Flushing(_)) && this.session.out.len() == 0 {
                // Best effort: the peer may be gone.
                return Pin::new(&mut this.io).poll_shutdown(cx).map(|_| ());
            }
            if !busy && this.bell.sleep() {
                return Poll::Pending;
            }
            this.bell.awaken(cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<IO, S> Drop for Driver<IO, S> {
    fn drop(&mut self) {
        self.session.close_all();
    }
}
