//! Connections to the other members, one per address, made on first use and again after a failure.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stor_proto::peer::peer_client::PeerClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// A member that does not take the connection in this time is away.
const CONNECT: Duration = Duration::from_secs(1);
/// How soon a connection is noticed to be dead when the other machine vanished without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Largest message: a read of the log is about 1 MiB, a forwarded request is limited by the caller's API.
pub(crate) const MESSAGE: usize = 16 << 20;
/// Addresses remembered; more than any cluster has members, including the former ones.
const CAPACITY: usize = 64;

/// An address that is none.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is not an address of the form host:port: {source}")]
pub(crate) struct BadAddress {
    address: String,
    source: tonic::transport::Error,
}

/// The connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Channels {
    known: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Channels {
    /// A client for `address`. Does not wait: the connection is made by the first call.
    pub(crate) fn client(&self, address: &str) -> Result<PeerClient<Channel>, BadAddress> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = if let Some(channel) = known.get(address) {
            channel.clone()
        } else {
            if known.len() >= CAPACITY {
                known.clear();
            }
            let channel = Endpoint::from_shared(format!("http://{address}"))
                .map_err(|source| BadAddress {
                    address: address.to_owned(),
                    source,
                })?
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .connect_lazy();
            known.insert(address.to_owned(), channel.clone());
            channel
        };
        drop(known);
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE)
            .max_encoding_message_size(MESSAGE))
    }
}

/// Whether the call surely never left this machine, because there was no connection to send it on.
pub(crate) fn never_sent(status: &Status) -> bool {
    if status.code() != Code::Unavailable {
        return false;
    }
    let mut source = status.source();
    while let Some(error) = source {
        // The connecting failed, by refusal or by its own time limit; a connection that broke under the call
        // is a different error.
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionRefused;
        }
        source = error.source();
    }
    false
}

/// Whether the other side is simply not there.
pub(crate) fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use stor_proto::peer::HttpRequest;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    async fn call(address: &str) -> Status {
        let mut client = Channels::default().client(address).unwrap();
        client.forward(HttpRequest::default()).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_refused_connection_carries_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert!(never_sent(&call(&address).await));
    }

    #[tokio::test]
    async fn a_connection_that_breaks_may_have_carried_the_request() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peer = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = [0; 24];
            socket.read_exact(&mut request).await.unwrap();
        });
        assert!(!never_sent(&call(&address).await));
        peer.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused() {
        for address in ["", "two words", "host:port:port"] {
            assert!(Channels::default().client(address).is_err(), "{address:?}");
        }
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        let channels = Channels::default();
        for port in 1..200 {
            channels.client(&format!("127.0.0.1:{port}")).unwrap();
        }
        assert!(channels.known.lock().unwrap().len() <= CAPACITY);
    }
}
