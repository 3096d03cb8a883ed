//! What a gossip connection brings: greetings, and messages that the machine takes in. Whatever they are, it keeps to its
//! cluster and its bounds, and answers with messages that it would take itself.
#![no_main]

use base::{ClusterId, PeerId, Time};
use bytes::Bytes;
use gossip::{About, Gossip, Identity, Input, MEMBERS_MAX, MESSAGE_BYTES_MAX, Output, Settings};
use libfuzzer_sys::fuzz_target;
use node::gossip::wire::{self, Greeting};

const CLUSTER: ClusterId = ClusterId(5);

fuzz_target!(|input: (bool, Vec<Vec<u8>>)| {
    let (addressed, messages) = input;
    let mut now = Time::from_millis(1_000_000);
    let about = About { cluster: CLUSTER, ..About::default() };
    let me = Identity::new("127.0.0.1:2381", PeerId(1), 7, about.clone()).expect("an address");
    let other = Identity::new("127.0.0.2:2381", PeerId(2), 7, about).expect("an address");
    let mut machine = Gossip::new(me.clone(), Settings::default(), 3, now);
    for message in messages {
        if let Some(greeting) = Greeting::decode(&message) {
            assert_eq!(Greeting::decode(&greeting.encode()), Some(greeting));
        }
        let _ = wire::refusal(&message);
        // Behind a header that leads to this node, more of it is looked at.
        let bytes = if addressed { [&header(&other, &me)[..], &message].concat() } else { message };
        let inputs = vec![Input::Message(Bytes::from(bytes))];
        for output in machine.turn(now, inputs) {
            let Output::Send { bytes, .. } = output else { continue };
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            assert!(gossip::sender(&bytes).is_some_and(|sender| sender.address == machine.me().address));
        }
        now = machine.next_due().unwrap_or(now).max(now);
        machine.turn(now, Vec::new());
        assert!(machine.members().count() <= MEMBERS_MAX);
        assert!(machine.members().all(|member| member.identity.is_of(CLUSTER)));
    }
});

/// Of a message by which `from` tells `to` its news.
fn header(from: &Identity, to: &Identity) -> Vec<u8> {
    const VERSION: u8 = 1;
    const GOSSIP: u8 = 9;
    let key = |identity: &Identity| {
        let Identity { address, peer, generation, renewal, revision, .. } = identity;
        let mut out = [&peer.0.to_le_bytes()[..], &generation.to_le_bytes()].concat();
        out.extend([&renewal.to_le_bytes()[..], &revision.to_le_bytes(), &[address.len() as u8], address.as_bytes()].concat());
        out
    };
    [&[VERSION, GOSSIP][..], &from.encode(), &[0, 0], &key(to)].concat()
}
