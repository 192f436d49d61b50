//! When a message counts as delivered: at the last byte, once, to one worker.

use crate::harness::{Connection, Farm, Host, SOON, eventually, for_each_host, holds};

for_each_host! {
    a_message_that_a_slow_worker_is_reading_is_in_delivery_for_others,
    other_messages_are_delivered_while_one_is_in_delivery,
    a_worker_that_hangs_up_in_the_middle_leaves_the_message_buffered_and_the_next_gets_it_whole,
    a_worker_that_hangs_up_before_the_answer_loses_nothing,
    a_message_overwritten_while_in_delivery_is_not_lost,
    a_message_in_delivery_when_the_server_is_killed_is_there_after_a_restart,
    two_requests_at_once_are_answered_with_one_message,
}

/// More than what the sockets between server and worker hold, so that an unread answer stays unfinished.
const LARGE: u64 = 64 << 20;

fn farm_with_large_message(host: Host) -> Farm {
    let mut farm = Farm::on(host);
    farm.sparse_blend_file("scene.blend", LARGE);
    farm.leave_blend("id-1", "scene.blend");
    farm
}

/// Reads an answer to its end. Returns how many bytes arrived.
fn drain(connection: &mut Connection, len: u64) -> u64 {
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    while received < len {
        let read = connection.read(&mut buffer) as u64;
        if read == 0 {
            break;
        }
        received += read;
    }
    received
}

/// Waits until a message can be fetched again, and fetches it.
#[track_caller]
fn fetch_when_released(farm: &Farm, uuid: &str) -> u64 {
    eventually("the message is offered again", SOON, || {
        let mut connection = Connection::open(farm.http);
        connection.send_head("GET", &farm.worker_path(&format!("/?bufferUUID={uuid}")), &[]);
        let head = connection.read_head();
        if head.status != 200 {
            return Err(head);
        }
        assert_eq!(drain(&mut connection, head.content_length()), head.content_length());
        Ok(head.content_length())
    })
}

fn a_message_that_a_slow_worker_is_reading_is_in_delivery_for_others(host: Host) {
    let mut farm = farm_with_large_message(host);
    let (mut slow, head) = farm.begin_fetch("id-1");
    for _ in 0..3 {
        let answer = farm.ask("GET", "id-1", &[]);
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        assert_eq!(farm.peer.loads(&answer.body), "{'message': 'Buffer Message In Delivery'}");
    }
    assert_eq!(drain(&mut slow, head.content_length()), head.content_length(), "the slow worker gets all of it");
    eventually("the message is removed", SOON, || {
        let answer = farm.fetch("id-1");
        holds(answer.value == "{'message': 'No Buffer Message'}", answer)
    });
}

fn other_messages_are_delivered_while_one_is_in_delivery(host: Host) {
    let mut farm = farm_with_large_message(host);
    let (_slow, _) = farm.begin_fetch("id-1");
    farm.leave("id-2", "'quick'");
    assert_eq!(farm.fetch_value("id-2"), "'quick'");
}

fn a_worker_that_hangs_up_in_the_middle_leaves_the_message_buffered_and_the_next_gets_it_whole(host: Host) {
    let mut farm = farm_with_large_message(host);
    for (round, received) in [0, 1, 1 << 20, 40 << 20].into_iter().enumerate() {
        let uuid = format!("round-{round}");
        farm.leave_blend(&uuid, "scene.blend");
        let (mut connection, head) = farm.begin_fetch(&uuid);
        drain(&mut connection, received);
        drop(connection);
        assert_eq!(fetch_when_released(&farm, &uuid), head.content_length());
        farm.expect_no_message(&uuid);
    }
}

fn a_worker_that_hangs_up_before_the_answer_loses_nothing(host: Host) {
    let mut farm = Farm::on(host);
    for round in 0..50 {
        let uuid = format!("id-{round}");
        farm.leave(&uuid, "'x' * 100_000");
        let mut connection = Connection::open(farm.http);
        connection.send_head("GET", &farm.worker_path(&format!("/?bufferUUID={uuid}")), &[]);
        drop(connection);
    }
    // What the server has handed to a connection before it noticed that the worker had hung up is delivered, as the
    // contract defines it; everything else must still be there, and none may stay in delivery.
    for round in 0..50 {
        eventually("the message is there or delivered", SOON, || {
            let answer = farm.fetch(&format!("id-{round}"));
            let settled = answer.status == 200 || answer.value == "{'message': 'No Buffer Message'}";
            holds(settled, answer)
        });
    }
}

fn a_message_overwritten_while_in_delivery_is_not_lost(host: Host) {
    let mut farm = farm_with_large_message(host);
    let (mut slow, head) = farm.begin_fetch("id-1");
    farm.leave("id-1", "'the later one'");
    assert_eq!(drain(&mut slow, head.content_length()), head.content_length(), "the earlier one goes on");
    let value = eventually("the later one is offered", SOON, || {
        let answer = farm.fetch("id-1");
        if answer.status == 200 { Ok(answer.value) } else { Err(answer) }
    });
    assert_eq!(value, "'the later one'");
    farm.expect_no_message("id-1");
}

fn a_message_in_delivery_when_the_server_is_killed_is_there_after_a_restart(host: Host) {
    let mut farm = farm_with_large_message(host);
    let (mut slow, _) = farm.begin_fetch("id-1");
    slow.read_exact(1 << 20);
    farm.kill9();
    farm.server.restart();
    assert!(fetch_when_released(&farm, "id-1") > LARGE);
}

fn two_requests_at_once_are_answered_with_one_message(host: Host) {
    let mut farm = Farm::on(host);
    for round in 0..100 {
        let uuid = format!("id-{round}");
        farm.leave(&uuid, "'one'");
        let path = farm.worker_path(&format!("/?bufferUUID={uuid}"));
        let mut connections = [Connection::open(farm.http), Connection::open(farm.http)];
        for connection in &mut connections {
            connection.send_head("GET", &path, &[]);
        }
        let statuses = connections.map(|mut connection| connection.read_response().status);
        assert!(statuses == [200, 400] || statuses == [400, 200], "round {round}: {statuses:?}");
    }
}
