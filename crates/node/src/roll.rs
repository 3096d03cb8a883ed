//! A change of the membership, in the words of the log.
//!
//! What has changed is read off the two memberships: every node then says the same of a change that was accepted, and
//! nobody says anything of one that was refused. Operators look for additions with `grep -i 'add.*node'`, so that no other
//! line may hold these two words in this order: a removal tells no `addr=`, behind which a host called `node4` might stand.

use consensus::{MemberRole, Membership};

/// One line for each member that came, went, votes from here on, or is to be replaced by another incarnation. None for a
/// membership that is only become known.
pub fn changes(before: &Membership, after: &Membership) -> Vec<String> {
    let mut lines = Vec::new();
    if before.is_empty() {
        return lines;
    }
    for (node, member) in &after.members {
        let Some(old) = before.members.get(node) else {
            // Members of groups that are placed have none of their own.
            let addresses = if member.peer_urls.is_empty() {
                String::new()
            } else {
                format!(" addr={}", member.peer_urls.join(","))
            };
            lines.push(format!("Added node, node={node}{addresses} role={}", role_name(member.role)));
            continue;
        };
        if old.role != member.role && member.role == MemberRole::Voter {
            lines.push(format!("Promoted node, node={node}"));
        }
        if old.successor != member.successor && !member.successor.is_none() {
            lines.push(format!("Replacing node, node={node} old_peer={} new_peer={}", old.peer, member.successor));
        }
        if old.peer != member.peer && !old.peer.is_none() {
            lines.push(format!("Replaced node, node={node} old_peer={} new_peer={}", old.peer, member.peer));
        }
    }
    let gone = before.members.keys().filter(|node| !after.members.contains_key(node));
    lines.extend(gone.map(|node| format!("Removed node, node={node}")));
    lines
}

fn role_name(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Learner => "learner",
        MemberRole::Voter => "voter",
    }
}

#[cfg(test)]
mod tests {
    use base::{NodeId, PeerId};
    use consensus::Member;

    use super::*;

    fn of(members: &[(u64, u64, MemberRole)]) -> Membership {
        let member = |(node, peer, role): (u64, u64, MemberRole)| {
            let (node, peer_urls) = (NodeId(node), vec![format!("http://node{node}:2380")]);
            (node, Member { node, peer: PeerId(peer), role, peer_urls, ..Member::default() })
        };
        Membership { members: members.iter().copied().map(member).collect(), ..Membership::default() }
    }

    /// The runbook's `grep -i 'add.*node'`.
    fn is_found(line: &str) -> bool {
        let line = line.to_lowercase();
        line.find("add").is_some_and(|at| line[at + "add".len()..].contains("node"))
    }

    #[test]
    fn only_additions_are_found_by_the_runbooks_pattern() {
        use MemberRole::{Learner, Voter};
        let (two, three) =
            (of(&[(1, 11, Voter), (2, 12, Voter)]), of(&[(1, 11, Voter), (2, 12, Voter), (4, 0, Learner)]));
        let added = changes(&two, &three);
        assert_eq!(added, ["Added node, node=4 addr=http://node4:2380 role=learner"]);
        assert!(is_found(&added[0]));

        let arrived = of(&[(1, 11, Voter), (2, 12, Voter), (4, 14, Learner)]);
        assert_eq!(changes(&three, &arrived), [""; 0], "a folder that presents itself changes nobody's place");
        let promoted = of(&[(1, 11, Voter), (2, 12, Voter), (4, 14, Voter)]);
        let mut replacing = promoted.clone();
        replacing.members.get_mut(&NodeId(4)).unwrap().successor = PeerId(24);
        let replaced = of(&[(1, 11, Voter), (2, 12, Voter), (4, 24, Voter)]);
        for (before, after, line) in [
            (&arrived, &promoted, "Promoted node, node=4".to_owned()),
            (&promoted, &two, "Removed node, node=4".to_owned()),
            (&promoted, &replacing, format!("Replacing node, node=4 old_peer={} new_peer={}", PeerId(14), PeerId(24))),
            (&replacing, &replaced, format!("Replaced node, node=4 old_peer={} new_peer={}", PeerId(14), PeerId(24))),
        ] {
            assert_eq!(changes(before, after), [line.as_str()]);
            assert!(!is_found(&line), "{line}");
        }
        assert_eq!(changes(&Membership::default(), &three), [""; 0], "who has just heard of a cluster saw nobody come");
    }
}
