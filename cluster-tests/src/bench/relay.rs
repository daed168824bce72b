//! A relay that copies bytes and reads none of them: the least that any proxy can cost on this machine.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

/// For each client and direction.
const BUFFER: usize = 16 << 10;

/// Accepts clients at `listen` and connects each to `to`. Ends only when it cannot listen.
pub async fn serve(listen: SocketAddr, to: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        match listener.accept().await {
            Ok((client, _)) => drop(tokio::spawn(carry(client, to))),
            // Of one client that went at once, or of too many of them: the others are served.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn carry(mut client: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await.map(drop)
}
