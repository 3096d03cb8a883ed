//! Cuts in the network: who does not hear whom. Rules of nft on the machine that does not hear; connections that are up
//! stay up and carry nothing, as over a real cable that was pulled.
//!
//! And cables that are longer or narrower than others ([`SlowWire`]): a program of ours between a machine and the bridge
//! (`tools/slow-wire`), which needs nothing of the kernel that is not everywhere.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::time::Duration;

use crate::world::World;

const TABLE: &str =
    "add table inet wires\nadd chain inet wires in { type filter hook input priority -10; policy accept; }";

const FIREWALL: &str = "\
add table inet firewall
add set inet firewall open { type inet_service; }
add chain inet firewall in { type filter hook input priority 0; policy accept; }
add rule inet firewall in iif lo accept
add rule inet firewall in ct state established,related accept
add rule inet firewall in tcp dport @open accept
add rule inet firewall in tcp dport { 2379, 2380, 2381 } reject with tcp reset
";

/// A machine's cable is slow as long as this lives.
pub struct SlowWire<'a> {
    world: &'a World,
    node: usize,
    carrier: Child,
}

/// `deaf[i]` are those whom node `i + 1` does not hear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    deaf: Vec<Vec<usize>>,
}

impl Cut {
    pub fn none(count: usize) -> Cut {
        Cut { deaf: vec![Vec::new(); count] }
    }

    /// These hear nobody else, and nobody else hears them.
    pub fn apart(count: usize, minority: &[usize]) -> Cut {
        Cut::between(count, |hearer, speaker| minority.contains(&hearer) != minority.contains(&speaker))
    }

    /// Nobody hears anybody.
    pub fn asunder(count: usize) -> Cut {
        Cut::between(count, |_, _| true)
    }

    /// All nodes in a ring, each in touch with its two neighbours there only: each sees a majority, and no two the same.
    pub fn ring(order: &[usize]) -> Cut {
        let at = |node: usize| order.iter().position(|other| *other == node).expect("all nodes are in the ring");
        let count = order.len();
        Cut::between(count, |hearer, speaker| {
            let distance = at(hearer).abs_diff(at(speaker));
            distance != 1 && distance != count - 1
        })
    }

    /// `middle` is in touch with both sides, which are not with each other.
    pub fn bridge(count: usize, middle: usize) -> Cut {
        let side = |node: usize| if node < middle { 0 } else { 1 };
        Cut::between(count, |hearer, speaker| {
            hearer != middle && speaker != middle && (count == 3 || side(hearer) != side(speaker))
        })
    }

    /// `deaf` does not hear the others, who hear it.
    pub fn one_way(count: usize, deaf: usize) -> Cut {
        Cut::between(count, |hearer, _| hearer == deaf)
    }

    /// The others do not hear `mute`, who hears them.
    pub fn other_way(count: usize, mute: usize) -> Cut {
        Cut::between(count, |_, speaker| speaker == mute)
    }

    fn between(count: usize, cut: impl Fn(usize, usize) -> bool) -> Cut {
        let deaf = |hearer| (1..=count).filter(|speaker| *speaker != hearer && cut(hearer, *speaker)).collect();
        Cut { deaf: (1..=count).map(deaf).collect() }
    }
}

impl World {
    /// Cuts the nodes from each other as told, and nowhere else. The operator stays in touch with all.
    pub fn cut(&self, cut: &Cut) {
        for (index, speakers) in cut.deaf.iter().enumerate() {
            let mut rules = format!("{TABLE}\nflush chain inet wires in\n");
            for speaker in speakers {
                rules += &format!("add rule inet wires in ip saddr {} drop\n", self.address(*speaker));
            }
            self.on(index + 1, &format!("nft -f - <<'END'\n{rules}END")).succeeds();
        }
    }

    /// A firewall that refuses all of Chainfire's ports, until `firewall-cmd` opens them.
    pub fn close_ports(&self, node: usize) {
        self.on(node, &format!("nft -f - <<'END'\n{FIREWALL}END")).succeeds();
    }

    pub fn heal(&self) {
        self.cut(&Cut::none(self.count()));
    }

    /// What goes to a node or comes from it arrives that much later.
    pub fn lengthen(&self, node: usize, delay: Duration) -> SlowWire<'_> {
        self.slow_wire(node, delay, 0)
    }

    /// No more than that goes to a node in a second, or comes from it.
    pub fn narrow(&self, node: usize, kbit: u32) -> SlowWire<'_> {
        self.slow_wire(node, Duration::ZERO, kbit)
    }

    fn slow_wire(&self, node: usize, delay: Duration, kbit: u32) -> SlowWire<'_> {
        let (cable, delay, kbit) = (cable(node), delay.as_millis().to_string(), kbit.to_string());
        let mut carrier = self.operator_starts(&["slow-wire", &cable, &delay, &kbit]);
        let mut said = String::new();
        let output = carrier.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut said).unwrap();
        assert_eq!(said, "up\n", "no wire can be made slow here");
        SlowWire { world: self, node, carrier }
    }
}

impl Drop for SlowWire<'_> {
    fn drop(&mut self) {
        let cable = cable(self.node);
        self.world.operator(&format!("ip link set {cable} master wire && ip link del {cable}-end"));
        let _ = self.carrier.kill();
        let _ = self.carrier.wait();
    }
}

/// The operator's end of a machine's cable.
fn cable(node: usize) -> String {
    format!("node{node}")
}

#[test]
fn cuts_are_what_their_names_say() {
    assert_eq!(Cut::apart(3, &[2]).deaf, [vec![2], vec![1, 3], vec![2]]);
    assert_eq!(Cut::asunder(3).deaf, [vec![2, 3], vec![1, 3], vec![1, 2]]);
    assert_eq!(Cut::ring(&[1, 2, 3, 4, 5]).deaf, [vec![3, 4], vec![4, 5], vec![1, 5], vec![1, 2], vec![2, 3]]);
    assert_eq!(Cut::bridge(3, 2).deaf, [vec![3], vec![], vec![1]]);
    assert_eq!(Cut::bridge(3, 1).deaf, [vec![], vec![3], vec![2]]);
    assert_eq!(Cut::one_way(3, 1).deaf, [vec![2, 3], vec![], vec![]]);
    assert_eq!(Cut::other_way(3, 1).deaf, [vec![], vec![1], vec![1]]);
}
