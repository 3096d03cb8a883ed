//! What the peer's frames do to a session.
//!
//! An error ends the connection; what concerns one stream only ends that stream. Frames for streams that are gone are
//! stragglers and ignored, but their headers pass through the decoder and their bytes go back to the window.

use bytes::Bytes;

use super::{Event, Fatal, Session, Surroundings, WINDOW_BYTES_MAX};
use crate::Status;
use crate::server::http2::frame::{self, Head, PAYLOAD_BYTES_MAX, Reason, flag, kind, put_headers, put_reset};
use crate::server::http2::hpack::Field;
use crate::server::http2::inbound::{Assembler, RequestHead, deadline};
use crate::server::http2::stream_state::{Inbound, Stream, Unary};
use crate::server::metadata::Metadata;
use crate::server::service::Kind;
use crate::server::stream::Channel;

impl Session {
    /// Takes one frame.
    pub(super) fn frame(&mut self, head: Head, payload: &[u8], around: &Surroundings) -> Result<(), Fatal> {
        if self.block.is_some() && head.kind != kind::CONTINUATION {
            return Err(protocol("a header block was interrupted"));
        }
        if !self.settings_seen && head.kind != kind::SETTINGS {
            return Err(protocol("the first frame must be SETTINGS"));
        }
        match head.kind {
            kind::DATA => self.data(head, payload, around),
            kind::HEADERS => self.headers(head, payload, around),
            kind::CONTINUATION => self.continuation(head, payload, around),
            kind::SETTINGS => self.settings(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::RST_STREAM => {
                let idle = head.stream > self.last_stream && !self.refusing;
                if payload.len() != 4 || head.stream == 0 || idle {
                    return Err(protocol("bad RST_STREAM"));
                }
                self.lose_patience()?;
                self.forget(head.stream);
                Ok(())
            }
            kind::PING => {
                let payload: &[u8; 8] = payload.try_into().map_err(|_| protocol("bad PING"))?;
                if head.has(flag::ACK) {
                    self.ping_acknowledged = true;
                    return Ok(());
                }
                self.lose_patience()?;
                frame::put_ping(true, payload, self.out.tail());
                Ok(())
            }
            kind::PRIORITY => {
                if payload.len() != 5 || head.stream == 0 {
                    return Err(protocol("bad PRIORITY"));
                }
                self.lose_patience()
            }
            kind::PUSH_PROMISE => Err(protocol("clients cannot push")),
            // GOAWAY from a client only says that it opens no more streams. Unknown kinds are to be ignored.
            _ => self.lose_patience(),
        }
    }

    fn headers(&mut self, head: Head, payload: &[u8], around: &Surroundings) -> Result<(), Fatal> {
        if head.stream.is_multiple_of(2) {
            return Err(protocol("clients open streams with odd numbers"));
        }
        let payload = frame::unpadded(head, payload).ok_or(protocol("more padding than payload"))?;
        let block = if head.has(flag::PRIORITY) { payload.get(5..) } else { Some(payload) };
        let block = block.ok_or(protocol("bad HEADERS"))?;
        if head.has(flag::END_HEADERS) {
            return self.header_block(head, block, around);
        }
        self.block = Some((head, block.to_vec()));
        Ok(())
    }

    fn continuation(&mut self, head: Head, payload: &[u8], around: &Surroundings) -> Result<(), Fatal> {
        let (first, mut block) = self.block.take().ok_or(protocol("CONTINUATION without HEADERS"))?;
        self.lose_patience()?;
        if head.stream != first.stream || block.len() + payload.len() > self.limits.header_bytes_max {
            return Err(Fatal { reason: Reason::EnhanceYourCalm, text: "header block too large" });
        }
        block.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.header_block(first, &block, around);
        }
        self.block = Some((first, block));
        Ok(())
    }

    fn header_block(&mut self, frame: Head, block: &[u8], around: &Surroundings) -> Result<(), Fatal> {
        let id = frame.stream;
        let bytes_max = self.limits.header_bytes_max;
        let mut head = RequestHead::default();
        let mut sink = |field: &Field| {
            if head.bytes() <= bytes_max {
                head.add(field);
            }
        };
        let bad_block = |_| Fatal { reason: Reason::Compression, text: "bad header block" };
        self.decoder.decode(block, &mut sink).map_err(bad_block)?;

        if id <= self.last_stream {
            // Trailers, or a straggler for a stream that we have ended.
            if self.streams.contains_key(&id) {
                if !frame.has(flag::END_STREAM) {
                    return Err(protocol("trailers must end the stream"));
                }
                self.inbound_ended(id, around);
            }
            return Ok(());
        }
        if self.refusing {
            return Ok(());
        }
        self.last_stream = id;
        if self.streams.len() >= self.limits.streams_max {
            put_reset(id, Reason::RefusedStream, self.out.tail());
            self.events.push_back(Event::Refused);
            return self.lose_patience();
        }
        if !head.is_well_formed() {
            put_reset(id, Reason::Protocol, self.out.tail());
            return self.lose_patience();
        }
        self.open(id, head, frame.has(flag::END_STREAM), around);
        Ok(())
    }

    fn open(&mut self, id: u32, mut head: RequestHead, ended: bool, around: &Surroundings) {
        let mut stream = Stream::new(&self.limits, self.peer_stream_window);
        let too_large = head.bytes() > self.limits.header_bytes_max;
        if !head.is_grpc() {
            stream.raw = true;
            stream.inbound = Inbound::Http { head: Box::new(head), body: Vec::new() };
            self.streams.insert(id, stream);
            if ended {
                self.inbound_ended(id, around);
            }
            return;
        }
        let path = head.path.take().unwrap_or_default();
        let method = std::str::from_utf8(&path).ok().and_then(around.resolve);
        let refused = match (method, head.timeout) {
            _ if too_large => Some(Status::resource_exhausted("grpc: the header list is too large")),
            _ if head.method.as_deref() != Some(b"POST") => Some(Status::internal("grpc: the method must be POST")),
            (None, _) => Some(unknown_path(&path)),
            (_, Some(Err(_))) => Some(Status::internal("malformed grpc-timeout")),
            _ => None,
        };
        let (Some(method), None) = (method, &refused) else {
            stream.inbound = match ended {
                true => Inbound::Ended,
                false => Inbound::Streaming { assembler: Assembler::default(), encoding: None },
            };
            self.streams.insert(id, stream);
            return self.fail(id, &refused.expect("a call without a method was refused"));
        };
        let deadline = head.timeout.and_then(Result::ok).and_then(|timeout| deadline(around.now, timeout));
        let metadata = Metadata::new(head.metadata);
        let encoding = head.encoding;
        match method.kind {
            Kind::Unary => {
                let (method, assembler) = (method.id, Assembler::default());
                let unary = Unary { method, metadata, deadline, encoding, assembler, message: None };
                stream.inbound = Inbound::Unary(Box::new(unary));
                self.streams.insert(id, stream);
            }
            Kind::Streaming => {
                let channel = Channel::new(id, around.bell.clone());
                stream.channel = Some(channel.clone());
                stream.inbound = Inbound::Streaming { assembler: Assembler::default(), encoding };
                stream.head_sent = true;
                put_headers(id, false, self.out.tail(), |out| self.encoder.response_head(out));
                self.streams.insert(id, stream);
                let method = method.id;
                self.events.push_back(Event::Streaming { stream: id, method, metadata, deadline, channel });
            }
        }
        if ended {
            self.inbound_ended(id, around);
        }
    }

    fn data(&mut self, head: Head, payload: &[u8], around: &Surroundings) -> Result<(), Fatal> {
        let id = head.stream;
        if id == 0 || id > self.last_stream && !self.refusing {
            return Err(protocol("DATA on a stream that is not open"));
        }
        let content = frame::unpadded(head, payload).ok_or(protocol("more padding than payload"))?;
        let ends = head.has(flag::END_STREAM);
        if content.is_empty() && !ends {
            self.lose_patience()?;
        }
        self.unacknowledged += payload.len() as u32;
        if self.unacknowledged >= self.limits.connection_window_bytes / 2 {
            frame::put_window_update(0, std::mem::take(&mut self.unacknowledged), self.out.tail());
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if matches!(stream.inbound, Inbound::Ended) {
            return Err(protocol("DATA after the end of the stream"));
        }
        stream.receive_window -= payload.len() as i64;
        if stream.receive_window < 0 {
            put_reset(id, Reason::FlowControl, self.out.tail());
            self.forget(id);
            return self.lose_patience();
        }
        stream.unacknowledged += payload.len() as i64;
        let held_before = stream.held_bytes;
        let took = stream.take(content, &self.limits);
        self.held.change(held_before, stream.held_bytes);
        if let Err(status) = took {
            return match &stream.channel {
                // The handler decides what becomes of its call.
                Some(channel) => {
                    channel.end(Some(status));
                    stream.inbound = Inbound::Ended;
                    Ok(())
                }
                None => {
                    self.fail(id, &status);
                    Ok(())
                }
            };
        }
        if self.held.is_too_much(self.limits.held_bytes_max, self.limits.held_bytes_by_all_max) {
            self.fail(id, &Status::resource_exhausted("grpc: too many bytes of requests in flight"));
        } else if ends {
            self.inbound_ended(id, around);
        } else {
            stream.open_window(id, self.limits.stream_window_bytes, &mut self.out);
        }
        Ok(())
    }

    /// The caller has said everything.
    fn inbound_ended(&mut self, id: u32, around: &Surroundings) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match std::mem::replace(&mut stream.inbound, Inbound::Ended) {
            Inbound::Unary(mut unary) => {
                self.held.give_back(std::mem::take(&mut stream.held_bytes));
                match unary.message.take() {
                    Some(message) if unary.assembler.is_between_messages() => {
                        let Unary { method, metadata, deadline, .. } = *unary;
                        self.events.push_back(Event::Unary { stream: id, method, metadata, deadline, message });
                    }
                    _ => self.fail(id, &Status::internal("grpc: the request ended before its message did")),
                }
            }
            Inbound::Streaming { assembler, .. } => {
                let cut = !assembler.is_between_messages();
                let error = cut.then(|| Status::internal("grpc: the request ended within a message"));
                if let Some(channel) = &stream.channel {
                    channel.end(error);
                }
            }
            Inbound::Http { head, body } => {
                self.held.give_back(std::mem::take(&mut stream.held_bytes));
                match http_request(*head, body) {
                    Some(request) => {
                        let channel = Channel::new(id, around.bell.clone());
                        stream.channel = Some(channel.clone());
                        let request = Box::new(request);
                        self.events.push_back(Event::Http { stream: id, request, channel });
                    }
                    None => {
                        put_reset(id, Reason::Protocol, self.out.tail());
                        self.forget(id);
                    }
                }
            }
            Inbound::Ended => {}
        }
    }

    fn settings(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 || !payload.len().is_multiple_of(6) || head.has(flag::ACK) && !payload.is_empty() {
            return Err(protocol("bad SETTINGS"));
        }
        if head.has(flag::ACK) {
            return Ok(());
        }
        self.settings_seen = true;
        self.lose_patience()?;
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
            match id {
                1 => self.encoder.set_table_bytes_max(value as usize),
                4 => {
                    let window = i64::from(value);
                    if window > WINDOW_BYTES_MAX {
                        return Err(Fatal { reason: Reason::FlowControl, text: "window too large" });
                    }
                    let delta = window - std::mem::replace(&mut self.peer_stream_window, window);
                    for id in self.stream_ids() {
                        if let Some(stream) = self.streams.get_mut(&id) {
                            stream.send_window += delta;
                            self.queue(id);
                        }
                    }
                }
                5 => {
                    if !(PAYLOAD_BYTES_MAX as u32..=0xff_ffff).contains(&value) {
                        return Err(protocol("bad frame size"));
                    }
                    // Frames stay moderate, so that streams take turns.
                    self.peer_payload_bytes_max = (value as usize).min(64 << 10);
                }
                _ => {}
            }
        }
        frame::put_head(0, kind::SETTINGS, flag::ACK, 0, self.out.tail());
        Ok(())
    }

    fn window_update(&mut self, head: Head, payload: &[u8]) -> Result<(), Fatal> {
        let payload: [u8; 4] = payload.try_into().map_err(|_| protocol("bad WINDOW_UPDATE"))?;
        let more = i64::from(u32::from_be_bytes(payload) & 0x7fff_ffff);
        if head.stream > self.last_stream && !self.refusing {
            return Err(protocol("WINDOW_UPDATE on a stream that is not open"));
        }
        if head.stream == 0 {
            self.send_window += more;
            if more == 0 || self.send_window > WINDOW_BYTES_MAX {
                return Err(Fatal { reason: Reason::FlowControl, text: "bad WINDOW_UPDATE" });
            }
        } else if let Some(stream) = self.streams.get_mut(&head.stream) {
            stream.send_window += more;
            if more == 0 || stream.send_window > WINDOW_BYTES_MAX {
                put_reset(head.stream, Reason::FlowControl, self.out.tail());
                self.forget(head.stream);
                return self.lose_patience();
            }
            self.queue(head.stream);
        }
        Ok(())
    }
}

fn protocol(text: &'static str) -> Fatal {
    Fatal { reason: Reason::Protocol, text }
}

/// In the words of gRPC for Go, which etcd's users know.
fn unknown_path(path: &[u8]) -> Status {
    let path = String::from_utf8_lossy(path);
    match path.strip_prefix('/').and_then(|rest| rest.rsplit_once('/')) {
        Some((service, method)) => Status::unimplemented(format!("unknown method {method} for service {service}")),
        None => Status::unimplemented(format!("malformed method name: {path:?}")),
    }
}

fn http_request(head: RequestHead, body: Vec<u8>) -> Option<http::Request<Bytes>> {
    let mut request =
        http::Request::builder().method(&head.method?[..]).uri(&head.path?[..]).version(http::Version::HTTP_2);
    if let Some(authority) = &head.authority {
        request = request.header(http::header::HOST, &authority[..]);
    }
    if let Some(content_type) = &head.content_type {
        request = request.header(http::header::CONTENT_TYPE, &content_type[..]);
    }
    for (name, value) in &head.metadata {
        request = request.header(&name[..], &value[..]);
    }
    request.body(Bytes::from(body)).ok()
}
