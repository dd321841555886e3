//! Controllers that do what a test says, for the tests of the agent.

#![allow(dead_code, reason = "each test file uses its part")]

use std::pin::Pin;
use std::time::Duration;

use stor_proto::satellite as proto;
use stor_proto::satellite::from_controller::Kind as FromController;
use stor_proto::satellite::from_satellite::Kind as FromSatellite;
use stor_proto::satellite::satellites_server::{Satellites, SatellitesServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// Far above what anything here takes: reached only by a defect.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A controller's end of one session.
pub(crate) struct Visit {
    incoming: Streaming<proto::FromSatellite>,
    outgoing: mpsc::Sender<Result<proto::FromController, Status>>,
}

impl Visit {
    pub(crate) async fn hear(&mut self) -> FromSatellite {
        let heard = tokio::time::timeout(PATIENCE, self.incoming.next())
            .await
            .expect("the satellite says nothing");
        heard.unwrap().unwrap().kind.unwrap()
    }

    pub(crate) async fn hear_hello(&mut self) -> proto::Hello {
        match self.hear().await {
            FromSatellite::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn hear_request(&mut self) -> proto::Request {
        loop {
            match self.hear().await {
                FromSatellite::Request(request) => return request,
                FromSatellite::Status(_) => {}
                FromSatellite::Hello(hello) => panic!("{hello:?}"),
            }
        }
    }

    pub(crate) async fn hear_status(&mut self) -> proto::Status {
        loop {
            if let FromSatellite::Status(status) = self.hear().await {
                return status;
            }
        }
    }

    pub(crate) async fn say(&self, kind: FromController) {
        self.outgoing
            .send(Ok(proto::FromController { kind: Some(kind) }))
            .await
            .unwrap();
    }

    pub(crate) async fn welcome(&mut self, controllers: &[&str], heartbeat_ms: u32) -> proto::Hello {
        let hello = self.hear_hello().await;
        let controllers = controllers.iter().map(|&address| address.to_owned()).collect();
        self.say(FromController::Welcome(proto::Welcome {
            controllers,
            heartbeat_ms,
            ..Default::default()
        }))
        .await;
        hello
    }
}

/// What a controller does with a satellite that dials.
#[derive(Clone)]
pub(crate) enum Manner {
    Lead(mpsc::Sender<Visit>),
    NameLeader(String),
    KnowNoLeader,
}

struct Service(Manner);

#[tonic::async_trait]
impl Satellites for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<proto::FromController, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::FromSatellite>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut refused = Status::failed_precondition("this controller does not lead");
        match &self.0 {
            Manner::NameLeader(leader) => {
                refused
                    .metadata_mut()
                    .insert("stor-leader", leader.parse().unwrap());
                Err(refused)
            }
            Manner::KnowNoLeader => Err(refused),
            Manner::Lead(visits) => {
                let (outgoing, queue) = mpsc::channel(16);
                visits
                    .send(Visit {
                        incoming: request.into_inner(),
                        outgoing,
                    })
                    .await
                    .unwrap();
                Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
            }
        }
    }
}

pub(crate) async fn controller(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .add_service(SatellitesServer::new(Service(manner)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

pub(crate) async fn leader() -> (String, mpsc::Receiver<Visit>) {
    let (visits, coming) = mpsc::channel(4);
    (controller(Manner::Lead(visits)).await, coming)
}

pub(crate) async fn visit(coming: &mut mpsc::Receiver<Visit>) -> Visit {
    tokio::time::timeout(PATIENCE, coming.recv())
        .await
        .expect("nobody dials")
        .unwrap()
}
