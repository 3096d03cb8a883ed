//! Files of a data folder: who it is, who the members are, which ids a recovery has drawn, why it is given up. What is
//! understood of them is understood the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node::Identity;
use node::heal::Damage;
use node::recovery::NewIds;
use node::roster::Roster;

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    let text = String::from_utf8_lossy(bytes);
    match kind % 5 {
        0 => roster(bytes),
        // Under a good checksum more of it is looked at.
        1 => roster(&[bytes, &crc32fast::hash(bytes).to_le_bytes()].concat()),
        2 => {
            if let Ok(identity) = Identity::decode(&text) {
                assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
            }
        }
        3 => {
            if let Ok(ids) = NewIds::decode(&text) {
                assert_eq!(NewIds::decode(&ids.encode()), Ok(ids));
            }
        }
        _ => {
            let damage = Damage::decode(&text);
            assert_eq!(Damage::decode(&damage.encode()), damage);
        }
    }
});

fn roster(bytes: &[u8]) {
    if let Some(roster) = Roster::decode(bytes) {
        assert_eq!(Roster::decode(&roster.encode()), Some(roster));
    }
}
