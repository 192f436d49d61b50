//! Many clients at once.

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use crate::harness::{Connection, SOON, Server, Setup};

const THREADS: usize = 8;
const EACH: usize = 500;

/// Fetches a message; whether it was there. Asks again while another has it in delivery.
fn fetch(connection: &mut Connection, owner: usize, number: usize) -> bool {
    let start = Instant::now();
    loop {
        let answer = connection.request("GET", &format!("/?bufferUUID={owner}-{number}"), &[], b"");
        let contains = |text: &str| answer.body.windows(text.len()).any(|part| part == text.as_bytes());
        match answer.status {
            200 => {
                assert!(contains(&format!("message {owner}-{number}")), "another's message: {answer:?}");
                return true;
            }
            400 if contains("No Buffer Message") => return false,
            400 if contains("Buffer Message In Delivery") && start.elapsed() < SOON => {}
            _ => panic!("{owner}-{number}: {answer:?}"),
        }
    }
}

#[test]
fn eight_clients_that_add_and_fetch_500_messages_each_get_every_message_exactly_once() {
    let server = Server::start();
    let fetched: Vec<Vec<AtomicU32>> = (0..THREADS).map(|_| (0..EACH).map(|_| AtomicU32::new(0)).collect()).collect();
    let all_added = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (fetched, server, all_added) = (&fetched, &server, &all_added);
            scope.spawn(move || {
                let mut api = Connection::open(server.api);
                let mut http = Connection::open(server.http);
                let neighbour = (thread + 1) % THREADS;
                let mut take = |owner: usize, number: usize| {
                    if fetch(&mut http, owner, number) {
                        fetched[owner][number].fetch_add(1, Ordering::Relaxed);
                    }
                };
                for number in 0..EACH {
                    let body = serde_json::json!({
                        "TYPE": "ADD_BUFFER_MSG",
                        "DATA": {
                            "BUFFER_UUID": format!("{thread}-{number}"),
                            "BUFFER_MSG": format!("message {thread}-{number}"),
                        },
                    })
                    .to_string();
                    let answer = api.request("POST", "/CommunicationInterface/AddBufferMsg", &[], body.as_bytes());
                    assert_eq!(answer.status, 200, "{answer:?}");
                    // Half of them are raced for by two at once, the others as they come.
                    if number % 2 == 0 {
                        take(thread, number);
                    }
                    take(neighbour, number);
                }
                all_added.wait();
                for number in 0..EACH {
                    take(thread, number);
                }
            });
        }
    });
    for (thread, numbers) in fetched.iter().enumerate() {
        for (number, times) in numbers.iter().enumerate() {
            assert_eq!(times.load(Ordering::Relaxed), 1, "{thread}-{number}");
        }
    }
}

/// Niceness and scheduling policy of each thread.
fn scheduling(server: &Server) -> Vec<(i32, u32)> {
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid())).expect("the process's threads");
    threads
        .map(|thread| {
            let stat = fs::read_to_string(thread.expect("a thread").path().join("stat")).expect("a live thread");
            let (_, fields) = stat.rsplit_once(')').expect("a name");
            let field = |number: usize| fields.split_whitespace().nth(number - 3).expect("a field of stat(5)");
            (field(19).parse().expect("a niceness"), field(41).parse().expect("a policy"))
        })
        .collect()
}

#[test]
fn no_thread_interrupts_another_unless_the_process_was_given_a_niceness() {
    const OTHER: u32 = 0;
    const BATCH: u32 = 3;
    let threads = scheduling(&Server::start());
    assert!(threads.iter().all(|&thread| thread == (0, BATCH)), "{threads:?}");
    let threads = scheduling(&Setup::default().wrapper(&["nice", "-n", "3"]).start());
    assert!(threads.iter().all(|&thread| thread == (3, OTHER)), "{threads:?}");
}

/// These tests need the farm's Python programs.
mod python {
    use super::*;

    #[test]
    fn frames_posted_by_many_at_once_each_reach_the_user_manager_in_their_workers_order() {
        const FRAMES: usize = 100;
        let mut farm = crate::harness::Farm::start();
        let http = farm.http;
        std::thread::scope(|scope| {
            for worker in 0..THREADS {
                scope.spawn(move || {
                    let mut connection = Connection::open(http);
                    for frame in 0..FRAMES {
                        let body = serde_json::json!({
                            "USER_ID": format!("worker-{worker}"),
                            "MAIN_DATA": { "TYPE": "RENDER_COMPLETED", "DATA": frame },
                        })
                        .to_string();
                        let answer = connection.request("POST", "/", &[], body.as_bytes());
                        assert_eq!(answer.status, 200, "{answer:?}");
                    }
                });
            }
        });
        let mut next = [0; THREADS];
        for _ in 0..THREADS * FRAMES {
            let json: serde_json::Value = serde_json::from_slice(&farm.take().body).expect("JSON");
            let message = &json["DATA"]["DATA"];
            let worker = message["USER_ID"]
                .as_str()
                .and_then(|id| id.rsplit('-').next())
                .and_then(|id| id.parse::<usize>().ok());
            let worker = worker.unwrap_or_else(|| panic!("{json}"));
            assert_eq!(message["DATA"], next[worker], "{json}");
            next[worker] += 1;
        }
        farm.expect_nothing_for_the_user_manager();
    }
}
