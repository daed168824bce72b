//! Proxies that come in over real links.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::WebSocketUpgrade;
use axum::routing::get;
use futures_util::{SinkExt, StreamExt};
use pgherd_common::push;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};

use super::*;

/// Far more than anything here takes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(15);

struct Agent {
    hub: Hub,
    at: SocketAddr,
    inbox: mpsc::Receiver<Event>,
    _state: watch::Sender<Arc<ClusterState>>,
}

impl Agent {
    async fn start() -> Self {
        let (state, applied) = watch::channel(Arc::default());
        let (events, inbox) = mpsc::channel(8);
        let hub = Hub::new("demo".parse().unwrap(), applied, Duration::from_secs(2), events);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serving = hub.clone();
        let link = move |upgrade: WebSocketUpgrade| async move {
            upgrade.on_upgrade(move |socket| serving.serve(socket))
        };
        let routes = Router::new().route(push::PATH, get(link));
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { hub, at, inbox, _state: state }
    }

    /// A proxy introduces itself; its link, and what the agent says first.
    async fn meet(&self, proxy: &str, machine: &str, listen: &str) -> (WebSocketStream<TcpStream>, ToProxy) {
        let stream = TcpStream::connect(self.at).await.unwrap();
        let (mut link, _) = client_async(format!("ws://{}{}", self.at, push::PATH), stream).await.unwrap();
        let hello = ToAgent::Hello {
            protocol: PROTOCOL,
            cluster: "demo".parse().unwrap(),
            proxy: proxy.to_owned(),
            listen: listen.parse().unwrap(),
            machine: machine.to_owned(),
        };
        link.send(tungstenite::Message::Text(hello.encode().into())).await.unwrap();
        let said = timeout(PATIENCE, link.next()).await.unwrap().unwrap().unwrap();
        let said = ToProxy::decode(said.to_text().unwrap()).unwrap();
        (link, said)
    }

    fn listen_of(&self, proxy: &str) -> Option<String> {
        self.hub.proxies().get(proxy).map(|proxy| proxy.listen.to_string())
    }
}

#[tokio::test]
async fn a_second_proxy_of_a_name_is_turned_away_unless_it_runs_on_the_same_machine() {
    let mut agent = Agent::start().await;
    let (first, said) = agent.meet("east", "machine 1", "10.0.0.1:6432").await;
    assert!(matches!(said, ToProxy::Status(_)), "{said:?}");
    let (_, said) = agent.meet("east", "machine 2", "10.0.0.2:6432").await;
    let ToProxy::Goodbye(reason) = said else { panic!("it was let in: {said:?}") };
    for told in ["named east", "another machine", "10.0.0.1:6432", "10.0.0.2:6432", "proxy.name"] {
        assert!(reason.contains(told), "{reason}");
    }
    assert_eq!(agent.listen_of("east").as_deref(), Some("10.0.0.1:6432"));
    let (_other, said) = agent.meet("west", "machine 2", "10.0.0.2:6432").await;
    assert!(matches!(said, ToProxy::Status(_)), "{said:?}");

    // Started again, while the link of before seems to live on.
    let (second, said) = agent.meet("east", "machine 1", "10.0.0.1:6433").await;
    assert!(matches!(said, ToProxy::Status(_)), "{said:?}");
    let told = Arc::clone(&agent.hub.told);
    let told = told.notified();
    tokio::pin!(told);
    told.as_mut().enable();
    drop(first);
    timeout(PATIENCE, told).await.expect("the end of the old link is noticed");
    assert_eq!(agent.listen_of("east").as_deref(), Some("10.0.0.1:6433"));

    // Once it has gone, the name is free.
    drop(second);
    let left = timeout(PATIENCE, agent.inbox.recv()).await.unwrap();
    let ProxyId { name, machine } = match left {
        Some(Event::ProxyLeft { proxy, gave_up: false }) => proxy,
        other => panic!("{other:?}"),
    };
    assert_eq!((name.as_str(), machine.as_str()), ("east", "machine 1"));
    let (_third, said) = agent.meet("east", "machine 2", "10.0.0.2:6432").await;
    assert!(matches!(said, ToProxy::Status(_)), "{said:?}");
}
