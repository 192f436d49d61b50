//! `user-http-server doctor` at a real broker: what it says of the account, the exchanges and the queues, and that it
//! declares nothing.

use amiquip::{
    Channel, Connection, ConsumerOptions, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions,
};

use crate::command_line::doctor::{assert_line, assert_sound, doctor, with_ports};
use crate::harness::{AmqpFarm, Broker, Ended, Setup, Version, for_each_broker};

const PEER_EXCHANGE: &str = "COMMUNICATION_INTERFACE_EXCHANGE";
const OWN_EXCHANGE: &str = "USER_HTTP_SERVER_EXCHANGE";
const OWN_QUEUE: &str = "UHTTPSE_CI";

for_each_broker!(
    a_broker_without_the_farms_objects_is_no_failure_and_nothing_is_declared,
    a_running_gateway_and_its_broker_are_all_right,
    a_wrong_password_and_a_missing_vhost_are_told_apart,
    a_node_that_is_away_is_a_warning_while_another_works,
    objects_with_other_properties_are_a_warning_with_what_differs,
    a_queue_of_another_type_than_is_asked_for_fails,
    an_account_without_permissions_fails_and_the_command_that_grants_them_is_shown,
    a_queue_that_is_awaited_must_exist_and_have_a_consumer,
);

/// Examines what a gateway would find at `url`.
#[track_caller]
fn examined(url: &str, args: &[&str], code: i32) -> Ended {
    let setup: Setup = with_ports().args(["--amqp-url", url]).args(args);
    let ended = doctor(&setup);
    assert_sound(&ended);
    assert_eq!(ended.code, Some(code), "{ended:?}");
    ended
}

/// Does something at the broker as one of the farm's services.
fn at<T>(broker: &Broker, act: impl Fn(&Channel) -> amiquip::Result<T>) -> amiquip::Result<T> {
    let mut connection = Connection::insecure_open(&broker.url).expect("a broker");
    let done = connection.open_channel(None).and_then(|channel| act(&channel));
    // The act is done. amiquip reports an error if its own thread ends before it has read the answer.
    let _ = connection.close();
    done
}

fn a_broker_without_the_farms_objects_is_no_failure_and_nothing_is_declared(version: Version) {
    let broker = Broker::of(version);
    let ended = examined(&broker.url, &[], 0);
    assert_line(&ended, "ok      broker", &["logged in to amqp://guest:***@"]);
    for (kind, name) in [("exchange", OWN_EXCHANGE), ("exchange", PEER_EXCHANGE), ("queue", OWN_QUEUE)] {
        assert_line(&ended, &format!("warning {kind}"), &[name, "does not exist"]);
    }
    assert_line(&ended, "warning peer's queue", &["cannot be known", "rabbitmqctl list_bindings"]);
    at(&broker, |channel| channel.exchange_declare_passive(OWN_EXCHANGE).map(drop)).expect_err("declared");
    at(&broker, |channel| channel.exchange_declare_passive(PEER_EXCHANGE).map(drop)).expect_err("declared");
    at(&broker, |channel| channel.queue_declare_passive(OWN_QUEUE).map(drop)).expect_err("declared");
}

fn a_running_gateway_and_its_broker_are_all_right(version: Version) {
    let broker = Broker::of(version);
    let _gateway = AmqpFarm::at(&broker.url);
    let ended = examined(&broker.url, &[], 0);
    for (kind, name) in [("exchange", OWN_EXCHANGE), ("exchange", PEER_EXCHANGE), ("queue", OWN_QUEUE)] {
        assert_line(&ended, &format!("ok      {kind}"), &[name, "exists as the gateway declares it"]);
    }
    assert_line(&ended, "ok      queue", &["0 messages and 1 consumers"]);
    assert_line(&ended, "ok      permission", &["may publish to exchange", PEER_EXCHANGE]);
    assert_line(&ended, "ok      permission", &["may bind queue", OWN_QUEUE]);
}

fn a_wrong_password_and_a_missing_vhost_are_told_apart(version: Version) {
    let broker = Broker::of(version);
    let ended = examined(&broker.url.replace("guest:guest", "guest:hidden"), &[], 1);
    assert_line(&ended, "failed  broker", &["the login is refused", "type: rabbitmqctl authenticate_user guest"]);
    assert!(!format!("{ended:?}").contains("hidden"), "{ended:?}");
    let (address, _) = broker.url.rsplit_once('/').expect("a vhost");
    let ended = examined(&format!("{address}/missing"), &[], 1);
    assert_line(&ended, "failed  broker", &["the vhost is refused", "type: rabbitmqctl add_vhost missing"]);
}

fn a_node_that_is_away_is_a_warning_while_another_works(version: Version) {
    let broker = Broker::of(version);
    let away = format!("amqp://guest:guest@127.0.0.1:1/{}", broker.url.rsplit_once('/').expect("a vhost").1);
    let ended = examined(&away, &["--amqp-url", &broker.url], 0);
    assert_line(&ended, "warning broker", &["127.0.0.1:1/", "cannot connect", "type: "]);
    assert_line(&ended, "ok      broker", &["logged in to amqp://guest:***@"]);
    assert_line(&ended, "warning queue", &[OWN_QUEUE, "does not exist"]);
    let ended = examined(&away, &["--amqp-url", &away], 1);
    assert_line(&ended, "failed  broker", &["cannot connect"]);
}

fn objects_with_other_properties_are_a_warning_with_what_differs(version: Version) {
    let broker = Broker::of(version);
    at(&broker, |channel| {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(ExchangeType::Fanout, PEER_EXCHANGE, ExchangeDeclareOptions::default())?;
        channel.exchange_declare(ExchangeType::Direct, OWN_EXCHANGE, durable)?;
        let length = [("x-max-length".to_owned(), amiquip::AmqpValue::LongInt(10))].into_iter().collect();
        let options = QueueDeclareOptions { durable: true, arguments: length, ..QueueDeclareOptions::default() };
        channel.queue_declare(OWN_QUEUE, options).map(drop)
    })
    .expect("declared");
    let ended = examined(&broker.url, &[], 0);
    assert_line(&ended, "warning exchange", &[PEER_EXCHANGE, "other properties", "'type'", "fanout"]);
    assert_line(&ended, "warning exchange", &[OWN_EXCHANGE, "other properties", "'durable'"]);
    assert_line(&ended, "warning queue", &[OWN_QUEUE, "other properties", "x-max-length"]);
}

fn a_queue_of_another_type_than_is_asked_for_fails(version: Version) {
    let broker = Broker::of(version);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    at(&broker, |channel| channel.queue_declare(OWN_QUEUE, durable.clone()).map(drop)).expect("declared");
    examined(&broker.url, &["--amqp-queue-type", "classic"], 0);
    let ended = examined(&broker.url, &["--amqp-queue-type", "quorum"], 1);
    let delete = format!("rabbitmqctl delete_queue -p {} {OWN_QUEUE} --if-empty", broker.vhost());
    assert_line(&ended, "failed  queue", &["--amqp-queue-type", "x-queue-type", &format!("type: {delete}")]);
}

fn an_account_without_permissions_fails_and_the_command_that_grants_them_is_shown(version: Version) {
    let broker = Broker::of(version);
    let user = format!("powerless-{}", broker.vhost().replace(|char: char| !char.is_ascii_alphanumeric(), "-"));
    at(&broker, |channel| {
        channel.exchange_declare(ExchangeType::Direct, PEER_EXCHANGE, ExchangeDeclareOptions::default())?;
        channel.exchange_declare(ExchangeType::Direct, OWN_EXCHANGE, ExchangeDeclareOptions::default())?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(OWN_QUEUE, durable).map(drop)
    })
    .expect("declared");
    broker.rabbitmq.ctl(&["add_user", &user, "password"]);
    broker.rabbitmq.ctl(&["set_permissions", "-p", broker.vhost(), &user, "^$", "^$", "^$"]);
    let url = broker.url.replace("guest:guest", &format!("{user}:password"));
    let ended = examined(&url, &[], 1);
    let grant = format!("rabbitmqctl set_permissions -p {} {user} ", broker.vhost());
    assert_line(&ended, "failed  permission", &["may not publish", PEER_EXCHANGE, "ACCESS_REFUSED", "type: ", &grant]);
    assert_line(&ended, "warning permission", &["may not bind", OWN_QUEUE, &grant]);
    assert_line(&ended, "ok      exchange", &[PEER_EXCHANGE, "may not declare it"]);

    // the command that was shown, as an operator would type it
    let command = ended.stdout.lines().find_map(|line| line.split_once("type: rabbitmqctl ")).expect("a command").1;
    let words: Vec<&str> = command.split(' ').map(|word| word.trim_matches('\'')).collect();
    broker.rabbitmq.ctl(&words);
    let ended = examined(&url, &[], 0);
    assert_line(&ended, "ok      permission", &["may publish to exchange", PEER_EXCHANGE]);
    assert_line(&ended, "ok      permission", &["may bind queue", OWN_QUEUE]);
    at(&broker, |channel| channel.queue_unbind(OWN_QUEUE, OWN_EXCHANGE, OWN_QUEUE, FieldTable::new()))
        .expect("no binding, which is no error");
}

fn a_queue_that_is_awaited_must_exist_and_have_a_consumer(version: Version) {
    let broker = Broker::of(version);
    let args = ["--amqp-await-queue", "USER_MANAGER"];
    let ended = examined(&broker.url, &args, 1);
    assert_line(&ended, "failed  peer's queue", &["\"USER_MANAGER\" does not exist", "type: rabbitmqctl list_queues"]);
    at(&broker, |channel| channel.queue_declare("USER_MANAGER", QueueDeclareOptions::default()).map(drop)).expect("it");
    let ended = examined(&broker.url, &args, 1);
    assert_line(&ended, "failed  peer's queue", &["\"USER_MANAGER\" has no consumer"]);
    at(&broker, |channel| {
        let _consumer = channel.basic_consume("USER_MANAGER", ConsumerOptions::default())?;
        let ended = examined(&broker.url, &args, 0);
        assert_line(&ended, "ok      peer's queue", &["\"USER_MANAGER\" has 1 consumers"]);
        Ok(())
    })
    .expect("a consumer");
}
