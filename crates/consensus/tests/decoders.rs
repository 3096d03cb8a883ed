//! What other hosts and the log say, changed at random: decoders refuse it or give something that encodes to the same
//! again, and a host that is told it goes on.

#[path = "../../../fuzz/mutate.rs"]
mod mutate;

use std::sync::Arc;

use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::entry::{Commands, CommandsBuilder, EntryData};
use consensus::membership::ChangeRecord;
use consensus::wire::Body;
use consensus::{
    CreateGroup, Host, HostConfig, Input, Mark, Member, MemberRole, Membership, MembershipChange, Message, Output,
    Refusal,
};
use mutate::mutate;
use raft::eraftpb::{self, MessageType};
use storage::LogStore;
use storage::memlog::MemLog;

const GROUP: GroupId = GroupId(1);
const OWN: PeerId = PeerId(11);

fn membership() -> Membership {
    let members = (1..=3).map(|number| Member {
        node: NodeId(number),
        peer: PeerId(10 + number),
        name: format!("n{number}"),
        peer_urls: vec![format!("127.0.0.{number}:2380")],
        role: MemberRole::Voter,
        ..Member::default()
    });
    Membership::founding(ClusterId(5), members.collect())
}

fn records() -> Vec<ChangeRecord> {
    let changes = [
        MembershipChange::Add(Member { node: NodeId(4), name: "n4".to_owned(), ..Member::default() }),
        MembershipChange::Arrive { node: NodeId(4), peer: PeerId(14) },
        MembershipChange::Promote { node: NodeId(4) },
        MembershipChange::Remove { node: NodeId(2) },
        MembershipChange::Describe {
            node: NodeId(2),
            name: Some("other".to_owned()),
            peer_urls: Some(vec!["h:1".to_owned()]),
            client_urls: None,
        },
        MembershipChange::Succeed { node: NodeId(2) },
    ];
    changes.into_iter().zip(1..).map(|(change, seq)| ChangeRecord { origin: PeerId(12), seq, change }).collect()
}

fn commands() -> Bytes {
    let mut builder = CommandsBuilder::new(PeerId(12));
    builder.push(3, b"abc");
    builder.push(4, b"");
    builder.finish()
}

/// One of every kind, as another member would send it.
fn messages() -> Vec<Message> {
    let entry = |index, data: Bytes| eraftpb::Entry { index, term: 2, data: data.to_vec(), ..Default::default() };
    let raft = |msg_type: MessageType| eraftpb::Message {
        from: 12,
        to: OWN.0,
        term: 2,
        log_term: 1,
        index: 1,
        msg_type: msg_type as i32,
        ..Default::default()
    };
    let append = eraftpb::Message {
        entries: vec![entry(2, commands()), entry(3, EntryData::membership(&records()[0].encode()))],
        commit: 2,
        ..raft(MessageType::MsgAppend)
    };
    let kinds = [
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgAppendResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgTimeoutNow,
        MessageType::MsgTransferLeader,
        MessageType::MsgUnreachable,
        MessageType::MsgReadIndex,
    ];
    let rafts = kinds.into_iter().map(raft).chain([append]).map(|message| Body::Raft(Box::new(message)));
    let others = [
        Body::Forward { term: 2, data: commands() },
        Body::ForwardChange { term: 2, record: records()[3].encode().into() },
        Body::ForwardTransfer { term: 2, seq: 9, to: 2 },
        Body::ForwardRefused { term: 2, seqs: vec![1, 2], why: Refusal::Busy },
        Body::ReadQuery { term: 2, context: 7 },
        Body::ReadAnswer { context: 7, index: Some(3) },
        Body::HashReport { index: 256, hash: 1, version: 1 },
        Body::HashVerdict { index: 512, hash: 2, version: 1 },
        Body::Alive { life: 9 },
        Body::Sleep { term: 3, commit: 17 },
        Body::Wake,
        Body::Committed { term: 3, commit: 17 },
    ];
    let message = |body| Message { group: GROUP, from: PeerId(12), from_node: NodeId(2), to: OWN, body };
    rafts.chain(others).map(message).collect()
}

#[test]
fn messages_of_hosts() {
    let inputs: Vec<Vec<u8>> = messages().iter().map(|message| message.encode().to_vec()).collect();
    mutate(1, 100_000, &inputs, |bytes| {
        if let Some(message) = Message::decode(Bytes::copy_from_slice(bytes)) {
            assert!(Message::decode(message.encode()).as_ref() == Some(&message));
        }
    });
}

#[test]
fn entries() {
    let record = EntryData::membership(&records()[4].encode());
    mutate(2, 100_000, &[commands().to_vec(), record.to_vec()], |bytes| {
        let data = Bytes::copy_from_slice(bytes);
        match EntryData::decode(data.clone()) {
            Some(EntryData::Commands(commands)) => {
                let mut again = CommandsBuilder::new(commands.origin);
                commands.iter().for_each(|(seq, command)| again.push(seq, &command));
                assert_eq!(Commands::decode(again.finish()).as_ref(), Some(&commands));
            }
            Some(EntryData::Membership(record)) => drop(ChangeRecord::decode(&record)),
            Some(EntryData::Empty) | None => {}
        }
    });
}

#[test]
fn memberships_and_changes() {
    let mut joint = membership();
    joint.voters_outgoing = joint.voters.clone();
    joint.learners_next = vec![PeerId(14)];
    let inputs = [membership().encode(), joint.encode(), Membership::default().encode()];
    mutate(3, 100_000, &inputs, |bytes| {
        if let Some(membership) = Membership::decode(bytes) {
            assert_eq!(Membership::decode(&membership.encode()).as_ref(), Some(&membership));
        }
    });
    let inputs: Vec<Vec<u8>> = records().iter().map(ChangeRecord::encode).collect();
    mutate(4, 100_000, &inputs, |bytes| {
        if let Some(record) = ChangeRecord::decode(bytes) {
            assert_eq!(ChangeRecord::decode(&record.encode()).as_ref(), Some(&record));
            let mut members = membership();
            if members.plan(&record.change, 8).is_ok() {
                members.apply(&record.change);
                assert_eq!(Membership::decode(&members.encode()).as_ref(), Some(&members));
            }
        }
    });
}

/// A follower that is told changed messages, and carries out what its turns ask for.
struct Told {
    host: Host,
    store: Arc<MemLog>,
    now: u64,
    writes: u64,
}

impl Told {
    fn begin() -> Told {
        let store = Arc::new(MemLog::new());
        let mut host = Host::new(HostConfig::new(NodeId(1), 3), store.clone(), Time::ZERO);
        let mark = Mark { index: 1, term: 1, hash: 0 };
        let create = CreateGroup { group: GROUP, peer: OWN, mark, membership: membership().into(), fresh: true };
        let outputs = host.turn(Time::ZERO, vec![Input::Create(create)]);
        let mut told = Told { host, store, now: 0, writes: 0 };
        told.carry_out(outputs);
        told
    }

    fn turn(&mut self, input: Input) {
        self.now += 1;
        let outputs = self.host.turn(Time::from_millis(self.now), vec![input]);
        self.carry_out(outputs);
    }

    fn carry_out(&mut self, outputs: Vec<Output>) {
        let mut waiting = outputs;
        while !waiting.is_empty() {
            let mut inputs = Vec::new();
            for output in waiting.drain(..) {
                match output {
                    Output::Persist { number, batch } => {
                        self.store.write(&batch).unwrap();
                        self.writes += 1;
                        inputs.push(Input::Persisted { number });
                    }
                    Output::Committed { group, last, .. } => {
                        inputs.push(Input::Applied { group, index: last, hashes: Vec::new() });
                    }
                    _ => {}
                }
            }
            if !inputs.is_empty() {
                waiting = self.host.turn(Time::from_millis(self.now), inputs);
            }
        }
    }
}

#[test]
fn a_host_goes_on_whatever_it_is_told() {
    let valid = messages();
    let inputs: Vec<Vec<u8>> = valid.iter().map(|message| message.encode().to_vec()).collect();
    let mut told = Told::begin();
    let (mut rounds, mut stepped, mut writes) = (0u64, 0u64, 0u64);
    mutate(5, 300_000, &inputs, |bytes| {
        rounds += 1;
        // From the beginning now and then: absurd terms and indexes must not hide what is behind them.
        if rounds.is_multiple_of(20) {
            writes += told.writes;
            told = Told::begin();
        }
        if let Some(mut message) = Message::decode(Bytes::copy_from_slice(bytes)) {
            // Most others would end at the wrong group or peer.
            if !rounds.is_multiple_of(10) {
                (message.group, message.from, message.to) = (GROUP, PeerId(12), OWN);
                if let Body::Raft(raft) = &mut message.body {
                    (raft.from, raft.to) = (12, OWN.0);
                }
            }
            stepped += 1;
            told.turn(Input::Message(message));
        }
    });
    assert!(stepped > rounds / 5 && writes > rounds / 20, "{stepped} of {rounds} were messages, {writes} were heard");
}
