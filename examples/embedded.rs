//! An actix application with the gateway inside: a dashboard with routes of its own, an actor of its own that watches
//! the gateway's actors, and the gateway's routes below `/farm`, protected by the gateway's own middleware.
//!
//! ```text
//! cargo run --example embedded
//! curl -i http://127.0.0.1:8080/farm/workers -d '{"USER_ID": "me", "MAIN_DATA": {"TYPE": "TEST", "DATA": 1}}'
//! curl -i http://127.0.0.1:8080/dashboard
//! curl -i http://127.0.0.1:8080/farm/services/metrics
//! ```

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix_web::{App, HttpResponse, HttpServer, web};
use clap::Parser;
use serde::Serialize;
use user_http_actors::blend::DEFAULT_MAX_OPEN_BLEND_FILES;
use user_http_actors::publisher::FrameAck;
use user_http_actors::{ActorsConfig, ActorsState, UserHttpActors};
use user_http_server::auth::{Authentication, Tokens};
use user_http_server::{
    CrossOriginGuard, Gateway, H1_WRITE_BUFFER_SIZE, Limits, Metrics, configure_api_routes, configure_http_routes,
    remember_socket,
};

/// A dashboard with the gateway inside.
#[derive(Parser)]
struct Args {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8080")]
    bind: String,
    /// Directory in which the gateway stores messages; without it they are in memory only.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Directory from which .blend files may be sent.
    #[arg(long, default_value = "./blends")]
    blend_root: PathBuf,
    /// Bearer tokens of workers, one per line; without it every request is accepted.
    #[arg(long)]
    worker_token_file: Option<PathBuf>,
    /// Bearer tokens of the farm's services, one per line; without it only requests for localhost are accepted.
    #[arg(long)]
    api_token_file: Option<PathBuf>,
}

/// How often the state of the gateway is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// How many samples are kept: those of the last minute.
const SAMPLES: usize = 120;

/// The application's own actor: it samples the state of the gateway's actors.
struct Watcher {
    actors: UserHttpActors,
    started: Instant,
    samples: VecDeque<Sample>,
}

/// The state of the gateway at one moment.
#[derive(Clone, Serialize)]
struct Sample {
    /// Seconds since the start.
    at: f64,
    buffered: usize,
    in_delivery: usize,
    delivered_total: u64,
    for_user_manager: usize,
    tests_total: u64,
}

impl Actor for Watcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(SAMPLE_INTERVAL, |watcher, ctx| watcher.sample(ctx));
        self.sample(ctx);
    }
}

impl Watcher {
    fn sample(&self, ctx: &mut Context<Self>) {
        let actors = self.actors.clone();
        let asked = async move { actors.state().await };
        let noted = asked.into_actor(self).map(|state, watcher, ctx| match state {
            Ok(ActorsState { buffer, outbox, .. }) => {
                watcher.samples.truncate(SAMPLES - 1);
                watcher.samples.push_front(Sample {
                    at: watcher.started.elapsed().as_secs_f64(),
                    buffered: buffer.messages,
                    in_delivery: buffer.in_delivery,
                    delivered_total: buffer.delivered_total,
                    for_user_manager: outbox.messages,
                    tests_total: outbox.test_total,
                });
            }
            // the gateway has stopped
            Err(_) => ctx.stop(),
        });
        ctx.spawn(noted);
    }
}

/// To [`Watcher`]: asks for all samples.
#[derive(Message)]
#[rtype(result = "Vec<Sample>")]
struct GetSamples;

impl Handler<GetSamples> for Watcher {
    type Result = MessageResult<GetSamples>;

    fn handle(&mut self, _: GetSamples, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.samples.iter().cloned().collect())
    }
}

/// `GET /dashboard`: the samples of the last minute, newest first.
async fn dashboard(watcher: web::Data<Addr<Watcher>>) -> HttpResponse {
    match watcher.send(GetSamples).await {
        Ok(samples) => HttpResponse::Ok().json(samples),
        Err(_) => HttpResponse::ServiceUnavailable().finish(),
    }
}

/// Reads a file of tokens, if one is given.
fn read_tokens(file: Option<PathBuf>) -> Result<Option<Arc<Tokens>>, String> {
    file.map(|path| Tokens::read(&path).map(Arc::new)).transpose()
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info,actix_server=warn")).init();
    let args = Args::parse();
    let metrics = Metrics::new();
    let config = ActorsConfig {
        data_dir: args.data_dir,
        blend_roots: vec![args.blend_root],
        private_files: Vec::new(),
        max_open_blend_files: DEFAULT_MAX_OPEN_BLEND_FILES,
        shared_buffer: None,
        max_buffered: 1 << 30,
        buffer_ttl: Duration::from_secs(86_400),
        max_outbox: 4 << 30,
        amqp: None,
        frame_ack: FrameAck::Stored,
    };
    let actors = metrics.record(|| UserHttpActors::start(config))?;
    actix_web::rt::spawn(metrics.clone().upkeep());
    let watcher = Watcher { actors: actors.clone(), started: Instant::now(), samples: VecDeque::new() }.start();
    let gateway = Gateway::new(actors.clone(), Limits::default()).with_metrics(metrics);
    let worker_authentication = Authentication::for_workers(read_tokens(args.worker_token_file)?);
    let api_tokens = read_tokens(args.api_token_file)?;
    let mut guard = CrossOriginGuard::new();
    if api_tokens.is_none() {
        guard = guard.loopback_hosts_and([]);
    }
    let api_authentication = Authentication::for_services(api_tokens);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(watcher.clone()))
            .route("/dashboard", web::get().to(dashboard))
            .service(
                web::scope("/farm/workers")
                    .wrap(worker_authentication.clone())
                    .configure(configure_http_routes(gateway.clone())),
            )
            .service(
                web::scope("/farm/services")
                    .wrap(api_authentication.clone())
                    .wrap(guard.clone())
                    .configure(configure_api_routes(gateway.clone())),
            )
    })
    .h1_write_buffer_size(H1_WRITE_BUFFER_SIZE)
    .on_connect(remember_socket)
    .bind(&args.bind)?;
    for address in server.addrs() {
        log::info!("dashboard listening on http://{address}/dashboard");
        log::info!("worker routes listening on http://{address}/farm/workers");
        log::info!("API routes listening on http://{address}/farm/services");
    }
    server.run().await?;
    actors.drain().await?;
    Ok(())
}
