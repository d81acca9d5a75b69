//! Ranks that find each other, or are told why not: as threads, and as processes of their own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use granule_split::Error;
use granule_split::comm::rendezvous::{RendezvousError as Why, follow, lead};

/// An address at which nobody listens.
fn address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);

fn why(error: Error) -> Why {
    match error {
        Error::Rendezvous { why, .. } => why,
        other => unreachable!("{other}"),
    }
}

#[test]
fn all_ranks_get_the_same_bytes_whoever_comes_first() {
    for ranks in [1, 2, 5, 16] {
        let address = address();
        thread::scope(|scope| {
            for rank in 1..ranks {
                let address = &address;
                scope.spawn(move || assert_eq!(follow(address, rank, ranks, LONG).unwrap(), b"the same"));
            }
            thread::sleep(Duration::from_millis(20));
            lead(&address, ranks, b"the same", LONG).unwrap();
        });
    }
}

#[test]
fn a_taken_port_and_a_missing_rank_are_said() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    assert!(matches!(why(lead(&at, 2, b"", SHORT).unwrap_err()), Why::Taken));
    assert!(matches!(why(lead("nowhere", 2, b"", SHORT).unwrap_err()), Why::Address(_)));
    let begun = Instant::now();
    let said = lead(&address(), 4, b"", SHORT).unwrap_err().to_string();
    assert!(said.contains("ranks 1, 2 and 3 did not come"), "{said}");
    assert!(matches!(why(follow(&address(), 1, 2, SHORT).unwrap_err()), Why::TimedOut { .. }));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn ranks_that_do_not_fit_end_it_for_all() {
    // Another number of ranks.
    let at = address();
    thread::scope(|scope| {
        let other = scope.spawn(|| why(follow(&at, 1, 3, LONG).unwrap_err()));
        let own = why(lead(&at, 2, b"", LONG).unwrap_err());
        assert!(matches!(own, Why::Ranks { rank: 1, other: 3, ranks: 2 }), "{own}");
        assert!(matches!(other.join().unwrap(), Why::Refused(_)));
    });
    // Two with one number.
    let at = address();
    thread::scope(|scope| {
        let two = [(); 2].map(|()| scope.spawn(|| why(follow(&at, 1, 3, LONG).unwrap_err())));
        let own = why(lead(&at, 3, b"", LONG).unwrap_err());
        assert!(matches!(own, Why::Twice { rank: 1 }), "{own}");
        for one in two {
            let said = one.join().unwrap().to_string();
            assert!(said.contains("two ranks are both rank 1"), "{said}");
        }
    });
}

#[test]
fn strangers_are_turned_away_and_the_group_goes_on() {
    let at = address();
    thread::scope(|scope| {
        let leader = scope.spawn(|| lead(&at, 2, b"bytes", LONG));
        let mut stranger = loop {
            match TcpStream::connect(&at) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n").unwrap();
        assert_eq!(follow(&at, 1, 2, LONG).unwrap(), b"bytes");
        leader.join().unwrap().unwrap();
    });
    // And the other way round: what listens is no rank 0.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = other.local_addr().unwrap().to_string();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = other.accept().unwrap().0;
            stream.write_all(b"220 mail.example.org ESMTP ready\r\n").unwrap();
            thread::sleep(Duration::from_millis(100));
        });
        assert!(matches!(why(follow(&at, 1, 2, LONG).unwrap_err()), Why::Stranger));
    });
}

const AT: &str = "GRANULE_TEST_RENDEZVOUS";

/// What a process of its own does, where the test below starts it; nothing otherwise.
#[test]
fn a_rank_of_its_own() {
    let Ok(at) = std::env::var(AT) else { return };
    assert_eq!(follow(&at, 1, 2, LONG).unwrap(), b"to a process");
}

#[test]
fn processes_find_each_other() {
    let at = address();
    let mut rank = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_rank_of_its_own"])
        .env(AT, &at)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    lead(&at, 2, b"to a process", LONG).unwrap();
    assert!(rank.wait().unwrap().success());
}
