//! Questions between nodes. A request is a frame of one byte (the method) and a body; the answer a frame of one byte
//! (zero, or one more than a refusal's code) and a body. Connections are kept for the next question.

use std::io;
use std::time::{Duration, Instant};

use base::NodeId;
use bytes::{Buf, Bytes};
use consensus::Refusal;
use consensus::wire::{refusal_code, refusal_from};

use super::frame::{self, Purpose};
use super::pipe::Pipe;
use super::{CallFuture, Caller, Transport, time_left};

/// Questions and answers are small.
const CALL_BYTES_MAX: usize = 4 << 20;
/// A connection without a question for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const POOLED_MAX: usize = 4;

/// Why no answer came, and whether the question went out: whoever has it may have done what it asks for.
struct NoAnswer {
    why: String,
    asked: bool,
}

impl NoAnswer {
    fn before_it_went_out(why: impl ToString) -> NoAnswer {
        NoAnswer { why: why.to_string(), asked: false }
    }

    fn after_it_went_out(why: impl ToString) -> NoAnswer {
        NoAnswer { why: why.to_string(), asked: true }
    }
}

impl Transport {
    /// Asks another node, and is done within the time. The outer error says that no answer came.
    pub async fn call(
        &self,
        node: NodeId,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Result<Bytes, Refusal>, String> {
        self.call_node(node, method, body, timeout).await.map_err(|none| none.why)
    }

    /// The same; no answer is a refusal, too.
    pub async fn call_or_refuse(
        &self,
        node: NodeId,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, Refusal> {
        let refusal = |none: NoAnswer| if none.asked { Refusal::Unanswered } else { Refusal::NoLeader };
        self.call_node(node, method, body, timeout).await.map_err(refusal)?
    }

    async fn call_node(
        &self,
        node: NodeId,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Result<Bytes, Refusal>, NoAnswer> {
        let mut failure = NoAnswer::before_it_went_out(format_args!("no address of node {node} is known"));
        let deadline = Instant::now() + timeout;
        for address in self.address(node).unwrap_or_default() {
            match self.call_at(address, method, body.clone(), time_left(deadline)).await {
                Ok(answer) => return Ok(answer),
                Err(none) => failure = NoAnswer { asked: none.asked || failure.asked, ..none },
            }
        }
        Err(failure)
    }

    /// Asks whoever listens at `address`.
    pub async fn call_address(
        &self,
        address: String,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Result<Bytes, Refusal>, String> {
        self.call_at(address, method, body, timeout).await.map_err(|none| none.why)
    }

    async fn call_at(
        &self,
        address: String,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Result<Bytes, Refusal>, NoAnswer> {
        let transport = self.clone();
        let deadline = Instant::now() + timeout;
        let asked = tokio::task::spawn_blocking(move || transport.ask(&address, method, &body, deadline));
        asked.await.map_err(NoAnswer::after_it_went_out)?
    }

    /// Asks this node itself.
    pub fn call_here(&self, method: u8, body: Bytes) -> CallFuture {
        match self.0.service.get() {
            Some(service) => service.call(&self.myself(), method, body),
            None => Box::pin(std::future::ready(Err(Refusal::Stopping))),
        }
    }

    fn ask(
        &self,
        address: &str,
        method: u8,
        body: &[u8],
        deadline: Instant,
    ) -> Result<Result<Bytes, Refusal>, NoAnswer> {
        let pooled = self.0.pool.lock().get_mut(address).and_then(Vec::pop);
        let fresh = pooled.is_none();
        let mut pipe = match pooled {
            Some(pipe) => pipe,
            None => self.connect_to(address, Purpose::Call, deadline).map_err(NoAnswer::before_it_went_out)?.0,
        };
        match exchange(&mut pipe, method, body, deadline) {
            Ok(answer) => {
                let mut pool = self.0.pool.lock();
                let idle = pool.entry(address.to_owned()).or_default();
                if idle.len() < POOLED_MAX {
                    idle.push(pipe);
                }
                Ok(answer)
            }
            // A kept connection may have been closed by the other side in the meantime. Methods may be repeated.
            Err(_) if !fresh => {
                let fresh = self.connect_to(address, Purpose::Call, deadline);
                let (mut pipe, _) = fresh.map_err(NoAnswer::after_it_went_out)?;
                exchange(&mut pipe, method, body, deadline).map_err(NoAnswer::after_it_went_out)
            }
            Err(error) => Err(NoAnswer::after_it_went_out(error)),
        }
    }

    pub(super) fn answer_calls(&self, mut pipe: Pipe, caller: &Caller) -> io::Result<()> {
        pipe.socket().set_read_timeout(Some(IDLE_TIMEOUT))?;
        loop {
            let mut request = frame::read(&mut pipe, CALL_BYTES_MAX)?;
            if request.is_empty() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an empty call"));
            }
            let method = request.get_u8();
            let answer = match self.0.service.get() {
                Some(service) => self.0.runtime.block_on(service.call(caller, method, request)),
                None => Err(Refusal::Stopping),
            };
            let mut reply = Vec::with_capacity(64);
            match answer {
                Ok(body) => {
                    reply.push(0);
                    reply.extend_from_slice(&body);
                }
                Err(why) => reply.push(1 + refusal_code(why)),
            }
            frame::write(&mut pipe, &reply)?;
        }
    }
}

fn exchange(pipe: &mut Pipe, method: u8, body: &[u8], deadline: Instant) -> io::Result<Result<Bytes, Refusal>> {
    pipe.socket().set_read_timeout(Some(time_left(deadline)))?;
    pipe.socket().set_write_timeout(Some(time_left(deadline)))?;
    let mut request = Vec::with_capacity(1 + body.len());
    request.push(method);
    request.extend_from_slice(body);
    frame::write(pipe, &request)?;
    let mut reply = frame::read(pipe, CALL_BYTES_MAX)?;
    match reply.try_get_u8() {
        Ok(0) => Ok(Ok(reply)),
        Ok(code) => Ok(Err(refusal_from(code - 1).unwrap_or(Refusal::NoLeader))),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}
