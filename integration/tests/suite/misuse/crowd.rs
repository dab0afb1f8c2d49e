//! Very many connections, and those on which nothing comes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use hafen_integration::cluster::Shape;
use hafen_integration::{Case, Test, cases, wait_until};

use super::{LEASE, Peace, has_not_grown};

pub(super) fn trials() -> Vec<Case> {
    cases![who_says_nothing_keeps_nobody_out(Root, Busybox, Program("ip"), Program("prlimit"))]
}

/// As many as a shell gives to a program that does not ask for more, and what it may ask for.
const FILES: &str = "--nofile=256:600";
const EACH: usize = 300;

/// From one machine: without a word, with a head that never ends, with a body that never comes, and without TLS.
fn who_says_nothing_keeps_nobody_out(t: &Test) {
    let shape = Shape { before: &["prlimit", FILES], ..Shape::new(2, LEASE) };
    let mut peace = Peace::of(t, shape);
    let before = peace.memory();
    let stranger = peace.lab.cluster.connect(t, 5);
    let words = [
        (7800, ""),
        (7800, "GET /v1/cluster HTTP/1.1\r\nHost: 10.88.0.1\r\nX-Slow: "),
        (7800, "POST /v1/jobs HTTP/1.1\r\nHost: 10.88.0.1\r\nContent-Length: 1000\r\n\r\n{"),
        (8800, ""),
    ];
    let mut held: Vec<TcpStream> = stranger.space.inside(|| {
        let dial = |(port, words): &(u16, &str)| {
            let address = SocketAddr::from(([10, 88, 0, 1], *port));
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
            // It may be closed already.
            let _ = stream.write_all(words.as_bytes());
            Some(stream)
        };
        words.iter().flat_map(|kind| (0..EACH).filter_map(move |_| dial(kind))).collect()
    });
    assert!(held.len() > 600, "only {} were taken", held.len());
    for _ in 0..5 {
        peace.is_served();
        std::thread::sleep(Duration::from_millis(200));
    }
    // One of ours that has to dial again is let in.
    peace.lab.cluster.machines[1].agent.kill9();
    peace.lab.cluster.machines[1].agent.restart();
    peace.lab.cluster.wait("it is heard again", |view| {
        let nodes = view["nodes"].as_array().into_iter().flatten();
        nodes
            .filter(|node| node["incarnation"] == "2")
            .any(|node| node["presence"] == "PRESENCE_HERE")
    });
    has_not_grown("those who say nothing", before, peace.memory(), 64);
    // Those with a body that never comes may stay for 30 s.
    let mut open = held.split_off(0);
    let let_go = wait_until(Duration::from_secs(20), || {
        open.retain_mut(is_open);
        (open.len() <= EACH).then_some(())
    });
    assert!(let_go.is_some(), "{} are still there", open.len());
    peace.holds();
}

/// Nothing is read, nothing has ended.
fn is_open(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    loop {
        match stream.read(&mut [0; 512]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
    }
}
