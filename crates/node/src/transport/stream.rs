//! Snapshots on their own connection: raft's message first, then the chunks, then an empty frame; the receiver answers
//! with one byte when all of it is verified and on its disk.

use std::io::{self, BufReader, BufWriter, Write};
use std::time::Duration;

use base::NodeId;
use consensus::wire::Body;
use consensus::{Input, Message, SnapshotSource};
use tokio::sync::oneshot;

use super::frame::{self, Purpose};
use super::pipe::Pipe;
use super::{Caller, Transport};
use crate::applier::Work;
use crate::clock;
use crate::pace::Paced;

const CHUNK_BYTES_MAX: usize = 8 << 20;
const BUFFER_BYTES: usize = 1 << 20;
/// A stream that makes no progress for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Making a large snapshot durable takes its time.
const FINISH_TIMEOUT: Duration = Duration::from_secs(600);

impl Transport {
    pub(crate) fn send_snapshot(
        &self,
        to: NodeId,
        message: &Message,
        mut source: Box<dyn SnapshotSource>,
    ) -> Result<(), String> {
        let (mut pipe, _) = self.connect(to, Purpose::Snapshot)?;
        let wrong = |error: io::Error| error.to_string();
        pipe.socket().set_write_timeout(Some(STALL_TIMEOUT)).map_err(wrong)?;
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, Paced::new(&mut pipe, &self.0.snapshot_pace));
        frame::write(&mut writer, &message.encode()).map_err(wrong)?;
        while let Some(chunk) = source.next_chunk().map_err(|error| error.to_string())? {
            frame::write(&mut writer, &chunk).map_err(wrong)?;
        }
        frame::write(&mut writer, &[]).and_then(|()| writer.flush()).map_err(wrong)?;
        drop(writer);
        pipe.socket().set_read_timeout(Some(FINISH_TIMEOUT)).map_err(wrong)?;
        let reply = frame::read(&mut pipe, frame::SMALL_BYTES_MAX).map_err(wrong)?;
        if reply.first() == Some(&0) { Ok(()) } else { Err("the other side could not take it".to_owned()) }
    }

    pub(super) fn receive_snapshot(&self, pipe: Pipe, caller: &Caller) -> io::Result<()> {
        pipe.socket().set_read_timeout(Some(STALL_TIMEOUT))?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, pipe);
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let message = Message::decode(frame::read(&mut reader, frame::BYTES_MAX)?)
            .ok_or_else(|| invalid("a snapshot without its message"))?;
        if !self.is_of(caller, &message) {
            return Err(invalid("a snapshot of another peer than the one that greeted"));
        }
        let Body::Raft(raft) = &message.body else { return Err(invalid("a snapshot with another message")) };
        let announced = raft.get_snapshot().get_metadata().clone();
        let members = announced.get_conf_state();
        let all = [&members.voters, &members.learners, &members.voters_outgoing, &members.learners_next];
        if ![message.to, message.from].iter().all(|peer| all.iter().any(|peers| peers.contains(&peer.0))) {
            // Taken before the one or the other became a member: the next one will do.
            return Err(io::Error::other("a snapshot between peers of which one is no member yet"));
        }
        let (reply, sink) = oneshot::channel();
        let (group, to, from) = (message.group, message.to, (message.from, message.from_node));
        self.0.work.push(Work::Receiver { group, to, from, reply });
        let no_sink = || io::Error::other("there is no such peer here, or enough snapshots are on their way in");
        let mut sink = sink.blocking_recv().ok().flatten().ok_or_else(no_sink)?;
        let failed = |error: consensus::MachineError| io::Error::other(error.to_string());
        loop {
            let chunk = frame::read(&mut reader, CHUNK_BYTES_MAX)?;
            if chunk.is_empty() {
                break;
            }
            sink.write(chunk).map_err(failed)?;
        }
        let mark = sink.finish().map_err(failed)?;
        if (announced.index, announced.term) != (mark.index, mark.term) {
            return Err(invalid("a snapshot that is not the one announced"));
        }
        let id = clock::random_u64();
        self.0.staged.lock().insert(id, sink);
        self.0.inbox.push(Input::SnapshotReceived { message, staged: id });
        frame::write(reader.get_mut(), &[0])
    }
}
