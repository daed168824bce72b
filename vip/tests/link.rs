//! Two machines on one link: network namespaces that a pair of virtual cards connects. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test without async, with figures for people"
)]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use pgherd_common::Clock;
use pgherd_common::time::RealClock;
use pgherd_vip::{KERNEL_SLACK, Vip};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static SERIAL: AtomicU32 = AtomicU32::new(0);
/// On a link of two virtual cards an answer takes microseconds.
const WAIT: Duration = Duration::from_millis(200);

/// Two machines, `left` and `right`, each with `eth0` on the same link.
struct Link {
    names: [String; 2],
}

impl Link {
    fn new() -> Self {
        let tag = format!("{}x{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let names = ["left", "right"].map(|side| format!("pgherd-vip-{tag}-{side}"));
        let link = Self { names };
        let [left, right] = &link.names;
        for name in &link.names {
            ip(&["netns", "add", name]);
        }
        let pair = ["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", right];
        ip(&[&["-n", left][..], &pair].concat());
        for (name, number) in link.names.iter().zip(1..) {
            ip(&["-n", name, "addr", "add", &format!("10.9.0.{number}/24"), "dev", "eth0"]);
            ip(&["-n", name, "addr", "add", &format!("fd09::{number}/64"), "dev", "eth0", "nodad"]);
            ip(&["-n", name, "link", "set", "eth0", "up"]);
        }
        // The kernel takes note of a link some time after it is there.
        for side in [0, 1] {
            until("the link is up", Duration::from_secs(5), || {
                let shown = link.ip(side, &["addr", "show", "dev", "eth0"]);
                shown.contains("state UP") && shown.contains("scope link") && !shown.contains("tentative")
            });
        }
        link
    }

    /// Does something on one of the machines.
    fn on<T: Send>(&self, side: usize, act: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.names[side]);
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let netns = File::open(path).unwrap();
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            inside.join().unwrap()
        })
    }

    fn ip(&self, side: usize, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.names[side]][..], arguments].concat())
    }

    /// The card that `side` believes to have this address.
    fn neighbour(&self, side: usize, address: &str) -> String {
        let shown = self.ip(side, &["neigh", "show", address, "dev", "eth0"]);
        let mut words = shown.split_whitespace();
        words.find(|word| *word == "lladdr").and_then(|_| words.next()).unwrap_or_default().to_owned()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for name in &self.names {
            let _gone = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "ip {arguments:?}: {err}");
    out.into_owned()
}

fn until(what: &str, within: Duration, mut look: impl FnMut() -> bool) {
    let began = RealClock.now();
    while !look() {
        assert!(RealClock.now().since(began) < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const ADDRESSES: [&str; 2] = ["10.9.0.100/24", "fd09::100/64"];

fn vip(subnet: &str) -> Vip {
    Vip::new(subnet.parse().unwrap(), "eth0".parse().unwrap())
}

#[test]
fn it_is_taken_found_and_given_up() {
    let link = Link::new();
    for subnet in ADDRESSES {
        let vip = vip(subnet);
        link.on(0, || {
            vip.check().unwrap();
            assert!(!vip.is_held().unwrap());
            assert!(!vip.release().unwrap(), "there was nothing to give up");
            vip.hold(Some(Duration::from_secs(60))).unwrap();
            vip.hold(Some(Duration::from_secs(60))).unwrap();
            assert!(vip.is_held().unwrap());
        });
        let shown = link.ip(0, &["addr", "show", "dev", "eth0"]);
        assert!(shown.contains(subnet), "{shown}");
        let line = shown.lines().find(|line| line.contains(subnet)).unwrap();
        assert!(!line.contains("tentative"), "{subnet} answers nobody yet: {shown}");
        // Whoever else asks is answered by the kernel.
        let holder = link.on(1, || vip.ask(WAIT).unwrap());
        assert!(holder.is_some(), "{subnet} answers");
        link.on(0, || assert!(vip.release().unwrap()));
        assert!(!link.ip(0, &["addr", "show", "dev", "eth0"]).contains(subnet));
    }
}

#[test]
fn a_foreign_holder_is_seen_and_an_absent_one_is_not() {
    let link = Link::new();
    let card = link.ip(1, &["-o", "link", "show", "dev", "eth0"]);
    for subnet in ADDRESSES {
        let vip = vip(subnet);
        assert_eq!(link.on(0, || vip.ask(WAIT).unwrap()), None);
        link.on(1, || vip.hold(Some(Duration::from_secs(60))).unwrap());
        let holder = link.on(0, || vip.ask(WAIT).unwrap()).expect("it answers");
        assert!(card.contains(&holder.to_string()), "{holder} is not the card of {card}");
        link.on(1, || vip.release().unwrap());
        assert_eq!(link.on(0, || vip.ask(WAIT).unwrap()), None);
    }
}

#[test]
fn an_announcement_moves_what_neighbours_know() {
    let link = Link::new();
    for subnet in ADDRESSES {
        let vip = vip(subnet);
        let address = subnet.split('/').next().unwrap();
        // The right machine believes that some other card has it.
        let stale = "02:00:00:00:00:99";
        link.ip(1, &["neigh", "replace", address, "lladdr", stale, "dev", "eth0", "nud", "stale"]);
        assert_eq!(link.neighbour(1, address), stale);
        link.on(0, || {
            vip.hold(Some(Duration::from_secs(60))).unwrap();
            vip.announce().unwrap();
        });
        until(&format!("the neighbour knows the new card of {subnet}"), Duration::from_secs(2), || {
            link.neighbour(1, address) != stale
        });
        let card = link.ip(0, &["-o", "link", "show", "dev", "eth0"]);
        assert!(card.contains(&link.neighbour(1, address)), "{card}");
    }
}

#[test]
fn an_address_that_nobody_renews_goes_by_itself() {
    let link = Link::new();
    let lifetime = Duration::from_secs(1);
    for subnet in ADDRESSES {
        let vip = vip(subnet);
        link.on(0, || vip.hold(Some(lifetime)).unwrap());
        let began = RealClock.now();
        until("it is gone", lifetime + KERNEL_SLACK, || !link.on(0, || vip.is_held().unwrap()));
        println!("{subnet}: with a lifetime of {lifetime:?} gone after {:?}", RealClock.now().since(began));
        // What is renewed stays, and what is to stay stays.
        link.on(0, || vip.hold(Some(lifetime)).unwrap());
        link.on(0, || vip.hold(None).unwrap());
        std::thread::sleep(lifetime + KERNEL_SLACK);
        assert!(link.on(0, || vip.is_held().unwrap()));
    }
}

#[test]
fn what_is_wrong_with_a_link_is_said() {
    let link = Link::new();
    let nowhere = Vip::new(ADDRESSES[0].parse().unwrap(), "eth7".parse().unwrap());
    link.on(0, || {
        let error = nowhere.check().unwrap_err().to_string();
        assert!(error.contains("there is no network interface eth7"), "{error}");
        assert!(nowhere.hold(None).unwrap_err().to_string().contains("eth7"));
        let loopback = Vip::new(ADDRESSES[0].parse().unwrap(), "lo".parse().unwrap());
        assert!(loopback.check().unwrap_err().to_string().contains("not an Ethernet interface"));
    });
    link.ip(1, &["link", "set", "eth0", "down"]);
    let vip = vip(ADDRESSES[0]);
    // Nobody answers there either, but that shows nothing.
    until("the missing link is noticed", Duration::from_secs(5), || {
        link.on(0, || vip.ask(WAIT)).is_err_and(|error| error.to_string().contains("has no link"))
    });
}
