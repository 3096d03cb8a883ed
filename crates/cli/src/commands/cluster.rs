//! `status --cluster`: every member asked for itself, and what follows from the answers: whether the cluster takes writes,
//! who does not answer and why, who lags, and what to do about it.
//!
//! The members are those that the newest answer knows (highest term, there the leader). A member is asked where it says that
//! clients reach it, and under the endpoints given; the one that is the same node counts. Nothing here is proof: it is
//! what this client sees from where it stands.

use futures::future::join_all;
use proto::admin::{GossipMember, Member, Role, StatusRequest, StatusResponse};
use serde_json::{Value, json};

use super::members::{gossip, gossip_state, member_json, role, version};
use super::status::{gossip_json, status_json};
use crate::connect::{self, Client, Repeat};
use crate::failure::{Failure, Kind};
use crate::output::{Format, Output};

/// A follower that lacks more entries than this is told of.
const LAG_ENTRIES_MAX: u64 = 10_000;

pub async fn status(client: &Client, out: &mut Output) -> Result<(), Failure> {
    let view = look(client).await?;
    match out.format_of_lines() {
        Format::Json => out.json(&view.json())?,
        Format::Table => view.table(out)?,
        Format::Simple => view.lines(out)?,
    }
    out.flush()?;
    view.verdict()
}

/// A member, and what came of asking it.
pub struct Asked {
    pub member: Member,
    /// Where it was asked; empty when it says nowhere.
    pub endpoint: String,
    /// Its answer, or why there is none.
    pub answer: Result<StatusResponse, String>,
    /// What gossip says of it to the member whose answer is the newest.
    pub gossip: &'static str,
    /// As it says itself, or else gossip.
    version: String,
}

/// All members as seen from here.
pub struct View {
    pub members: Vec<Asked>,
    /// Those that only gossip knows: they wait to be let in, or were members once.
    outsiders: Vec<GossipMember>,
    /// Zero: nobody knows one.
    leader: u64,
    term: u64,
    /// The highest committed index that anyone knows.
    index: u64,
    cluster_id: u64,
}

/// Asks everybody.
pub async fn look(client: &Client) -> Result<View, Failure> {
    let mut answers: Vec<(String, Result<StatusResponse, Failure>)> =
        ask_all(client, client.endpoints().to_vec()).await;
    let newest = |answers: &[(String, Result<StatusResponse, Failure>)]| {
        let good = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
        // What a leader knows of the others is better than hearsay.
        good.max_by_key(|status| (status.raft_term, status.role() == Role::Leader, status.raft_index)).cloned()
    };
    let Some(first) = newest(&answers) else {
        let failure = answers.swap_remove(0).1.err();
        return Err(failure.unwrap_or_else(|| Failure::new(Kind::Unreachable, "no member answers")));
    };
    let known = |answers: &[(String, Result<StatusResponse, Failure>)], member: &Member| {
        answers.iter().any(|(_, answer)| answer.as_ref().is_ok_and(|status| status.node_id == member.node_id))
    };
    let advertised = first.members.iter().filter(|member| !known(&answers, member));
    let further: Vec<_> = advertised.filter_map(|member| member.client_urls.first().cloned()).collect();
    answers.extend(ask_all(client, further).await);
    let newest = newest(&answers).expect("the first is among them");
    let asked = newest.members.iter().map(|member| {
        let own = answers.iter().find_map(|(endpoint, answer)| {
            let status = answer.as_ref().ok().filter(|status| status.node_id == member.node_id)?;
            Some((endpoint.clone(), Ok(status.clone())))
        });
        let (endpoint, answer) = own.unwrap_or_else(|| unanswered(member, &answers));
        let version = answer.as_ref().map_or_else(|_| version(&newest, member), |status| status.version.clone());
        Asked { member: member.clone(), endpoint, answer, gossip: gossip(&newest, member), version }
    });
    let members: Vec<_> = asked.collect();
    let is_member = |known: &&GossipMember| members.iter().any(|asked| asked.member.node_id == known.node_id);
    let outsiders = newest.gossip.iter().filter(|known| !is_member(known)).cloned().collect();
    let answered = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    let index = answered.map(|status| status.raft_index).max().unwrap_or_default();
    let (leader, term, cluster_id) = (newest.leader_node_id, newest.raft_term, newest.cluster_id);
    Ok(View { members, outsiders, leader, term, index, cluster_id })
}

async fn ask_all(client: &Client, endpoints: Vec<String>) -> Vec<(String, Result<StatusResponse, Failure>)> {
    join_all(endpoints.into_iter().map(|endpoint| async move {
        let ask = |channel| async move { connect::admin(channel).status(StatusRequest {}).await };
        let answer = client.only(&endpoint).call(Repeat::Safe, ask).await;
        (endpoint, answer)
    }))
    .await
}

fn unanswered(
    member: &Member,
    answers: &[(String, Result<StatusResponse, Failure>)],
) -> (String, Result<StatusResponse, String>) {
    let Some(advertised) = member.client_urls.first() else {
        let why = if member.peer_id == 0 { "not seen yet: start it" } else { "it does not say where clients reach it" };
        return (String::new(), Err(why.to_owned()));
    };
    let why = answers.iter().find(|(endpoint, _)| endpoint == advertised).map(|(_, answer)| match answer {
        // Without its endpoint, which stands beside it.
        Err(failure) => failure.text.split_once(": ").map_or(failure.text.as_str(), |(_, why)| why).to_owned(),
        Ok(other) => format!("node {} answers there", other.node_id),
    });
    (advertised.clone(), Err(why.unwrap_or_else(|| "not asked".to_owned())))
}

impl View {
    fn voters(&self) -> usize {
        self.members.iter().filter(|asked| !asked.member.learner).count()
    }

    fn answering(&self) -> usize {
        self.members.iter().filter(|asked| !asked.member.learner && asked.answer.is_ok()).count()
    }

    fn needed(&self) -> usize {
        self.voters() / 2 + 1
    }

    fn has_quorum(&self) -> bool {
        self.answering() >= self.needed()
    }

    fn silent(&self) -> impl Iterator<Item = &Asked> {
        self.members.iter().filter(|asked| asked.answer.is_err())
    }

    /// Entries that a member lacks: by its own word, else by the leader's.
    fn lag(&self, asked: &Asked) -> Option<u64> {
        match &asked.answer {
            Ok(status) => Some(self.index.saturating_sub(status.raft_index)),
            Err(_) => asked.member.progress.map(|progress| progress.lag_entries),
        }
    }

    fn health(&self) -> &'static str {
        match () {
            () if !self.has_quorum() => "quorum lost",
            () if self.leader == 0 => "no leader elected",
            () if self.advice().is_empty() => "good",
            () => "degraded",
        }
    }

    fn quorum(&self) -> String {
        format!("{} of {} voters answer, {} are needed", self.answering(), self.voters(), self.needed())
    }

    /// What to do, most urgent first. Nothing when all is well.
    fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let name = |asked: &Asked| format!("node {}", asked.member.node_id);
        let names: Vec<_> = self.silent().map(name).collect();
        if !self.has_quorum() {
            let voters: Vec<_> = self.silent().filter(|asked| !asked.member.learner).map(name).collect();
            advice.push(format!(
                "start a majority of the voters; these do not answer: {}. If they are gone for good, stop one that is \
                 left and run `chainfire recover --unsafe` on it",
                voters.join(", ")
            ));
        } else if self.leader == 0 {
            advice.push(
                "the members answer, but elect nobody: can they reach one another on their peer addresses (nc -zv HOST \
                 2380), with the same CA? their logs say who refuses whom"
                    .to_owned(),
            );
        } else if !names.is_empty() {
            let spare = self.answering() - self.needed();
            let left = match spare {
                0 => "writes stop when one more voter fails".to_owned(),
                spare => format!("{spare} more may fail before writes stop"),
            };
            advice.push(format!("see why {} does not answer, and start it: {left}", names.join(", ")));
        }
        for asked in &self.members {
            let node = asked.member.node_id;
            if let Some(lag) = self.lag(asked).filter(|lag| *lag > LAG_ENTRIES_MAX) {
                advice.push(format!(
                    "node {node} is {lag} entries behind: look at its disk and network, or wait until it has caught up"
                ));
            }
            let Ok(status) = &asked.answer else { continue };
            if status.cluster_id != self.cluster_id {
                let id = status.cluster_id;
                advice.push(format!(
                    "node {node} belongs to cluster {id:x}: it was started with another cluster's data or members"
                ));
            }
            if status.role() == Role::Leader && status.raft_term < self.term {
                advice.push(format!(
                    "node {node} still believes that it leads, in term {}: is it cut off from the others?",
                    status.raft_term
                ));
            }
            if status.version != self.version() {
                advice.push(format!(
                    "node {node} runs version {}, others {}: finish the upgrade",
                    status.version,
                    self.version()
                ));
            }
        }
        advice
    }

    /// That of the member with the highest.
    fn version(&self) -> &str {
        let versions = self.members.iter().filter_map(|asked| asked.answer.as_ref().ok());
        versions.map(|status| status.version.as_str()).max().unwrap_or_default()
    }

    fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        for asked in &self.members {
            let Ok(status) = &asked.answer else { continue };
            notes.extend(status.notes.iter().map(|note| format!("node {}: {note}", status.node_id)));
        }
        notes
    }

    fn lines(&self, out: &mut Output) -> Result<(), Failure> {
        let leader = if self.leader == 0 { "none".to_owned() } else { self.leader.to_string() };
        out.line(format!("health: {}", self.health()))?;
        out.line(format!("leader: {leader}"))?;
        out.line(format!("cluster_id: {:x}", self.cluster_id))?;
        out.line(format!("raft_term: {}", self.term))?;
        out.line(format!("raft_index: {}", self.index))?;
        out.line(format!("quorum: {}", self.quorum()))?;
        for asked in &self.members {
            let what = format!("member: {} {} {}", asked.member.node_id, self.role(asked), or_dash(&asked.endpoint));
            let lag = self.lag(asked).map_or("-".to_owned(), |lag| lag.to_string());
            let gossip = asked.gossip;
            match &asked.answer {
                Ok(status) => out.line(format!(
                    "{what} reachable raft_index={} raft_term={} lag={lag} gossip={gossip} version={}",
                    status.raft_index, status.raft_term, status.version
                ))?,
                Err(why) => out.line(format!("{what} unreachable lag={lag} gossip={gossip} reason={why}"))?,
            }
        }
        self.last_lines(out)
    }

    fn last_lines(&self, out: &mut Output) -> Result<(), Failure> {
        for known in &self.outsiders {
            let GossipMember { node_id, raft_address, role, .. } = known;
            out.line(format!("outsider: {node_id} {role} {raft_address} gossip={}", gossip_state(known.state())))?;
        }
        for note in self.notes() {
            out.line(format!("note: {note}"))?;
        }
        for advice in self.advice() {
            out.line(format!("advice: {advice}"))?;
        }
        Ok(())
    }

    fn table(&self, out: &mut Output) -> Result<(), Failure> {
        let rows = self.members.iter().map(|asked| {
            let of = |pick: fn(&StatusResponse) -> String| asked.answer.as_ref().map_or("-".to_owned(), pick);
            vec![
                asked.member.node_id.to_string(),
                asked.member.name.clone(),
                self.role(asked).to_owned(),
                asked.endpoint.clone(),
                asked.answer.as_ref().err().cloned().unwrap_or_else(|| "yes".to_owned()),
                of(|status| status.raft_term.to_string()),
                of(|status| status.raft_index.to_string()),
                self.lag(asked).map_or("-".to_owned(), |lag| lag.to_string()),
                asked.gossip.to_owned(),
                asked.version.clone(),
            ]
        });
        let head = ["NODE", "NAME", "ROLE", "ENDPOINT", "REACHABLE", "TERM", "INDEX", "LAG", "GOSSIP", "VERSION"];
        out.table(&head, rows)?;
        out.line(format!("health: {}; quorum: {}", self.health(), self.quorum()))?;
        self.last_lines(out)
    }

    pub fn json(&self) -> Value {
        let members = self.members.iter().map(|asked| {
            let mut value = member_json(&asked.member);
            value["endpoint"] = json!(asked.endpoint);
            value["role"] = json!(self.role(asked));
            value["gossip"] = json!(asked.gossip);
            value["reachable"] = json!(asked.answer.is_ok());
            value["lag_entries"] = json!(self.lag(asked));
            match &asked.answer {
                Ok(status) => value["status"] = status_json(&asked.endpoint, status),
                Err(why) => value["reason"] = json!(why),
            }
            value
        });
        json!({
            "health": self.health(),
            "leader": self.leader,
            "cluster_id": format!("{:x}", self.cluster_id),
            "raft_term": self.term,
            "raft_index": self.index,
            "voters": self.voters(),
            "voters_answering": self.answering(),
            "voters_needed": self.needed(),
            "members": members.collect::<Vec<_>>(),
            "outsiders": self.outsiders.iter().map(gossip_json).collect::<Vec<_>>(),
            "notes": self.notes(),
            "advice": self.advice(),
        })
    }

    fn role(&self, asked: &Asked) -> &'static str {
        role(&asked.member, self.leader)
    }

    /// Whether the cluster can take writes, as far as the answers show.
    fn verdict(&self) -> Result<(), Failure> {
        if !self.has_quorum() {
            let text = format!("quorum lost: {} of {} voters answer", self.answering(), self.voters());
            return Err(Failure::new(Kind::NoLeader, text).advise("start a majority of them"));
        }
        if self.leader == 0 {
            return Err(Failure::new(Kind::NoLeader, "no leader elected")
                .advise("the members answer us, but can they reach one another on their peer addresses?"));
        }
        Ok(())
    }
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(node_id: u64, learner: bool, answer: Result<(Role, u64, u64), &str>) -> Asked {
        let answer = answer.map_err(str::to_owned).map(|(role, raft_term, raft_index)| StatusResponse {
            node_id,
            role: role as i32,
            raft_term,
            raft_index,
            cluster_id: 7,
            ..Default::default()
        });
        let member = Member { node_id, peer_id: node_id, learner, ..Default::default() };
        Asked { member, endpoint: format!("http://node{node_id}:2379"), answer, gossip: "-", version: "-".to_owned() }
    }

    fn view(leader: u64, members: Vec<Asked>) -> View {
        View { members, outsiders: Vec::new(), leader, term: 5, index: 100_000, cluster_id: 7 }
    }

    #[test]
    fn health_is_told_from_the_answers() {
        let leads = || asked(1, false, Ok((Role::Leader, 5, 100_000)));
        let follows = |node| asked(node, false, Ok((Role::Follower, 5, 99_990)));
        let down = |node| asked(node, false, Err("connection refused"));
        let good = view(1, vec![leads(), follows(2), follows(3)]);
        assert_eq!((good.health(), good.verdict().is_ok(), good.advice().len()), ("good", true, 0));
        let degraded = view(1, vec![leads(), follows(2), down(3)]);
        assert_eq!((degraded.health(), degraded.verdict().is_ok()), ("degraded", true));
        assert!(degraded.advice()[0].contains("node 3 does not answer, and start it: writes stop when one more"));
        let lost = view(0, vec![follows(1), down(2), down(3)]);
        assert_eq!((lost.health(), lost.verdict().unwrap_err().kind), ("quorum lost", Kind::NoLeader));
        assert!(lost.advice()[0].contains("node 2, node 3") && lost.advice()[0].contains("recover --unsafe"));
        let headless = view(0, vec![follows(1), follows(2), down(3)]);
        assert_eq!((headless.health(), headless.verdict().unwrap_err().kind), ("no leader elected", Kind::NoLeader));
        // Learners have no vote; what they lack is told.
        let behind = view(1, vec![leads(), asked(4, true, Ok((Role::Learner, 5, 10)))]);
        assert_eq!((behind.voters(), behind.has_quorum(), behind.health()), (1, true, "degraded"));
        assert!(behind.advice()[0].starts_with("node 4 is 99990 entries behind"));
        let deposed = view(1, vec![leads(), follows(2), asked(3, false, Ok((Role::Leader, 4, 100_000)))]);
        assert!(deposed.advice()[0].contains("node 3 still believes that it leads, in term 4"));
    }
}
