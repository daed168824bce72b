//! Where clients come from: TCP addresses, and Unix sockets.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pgherd_common::HostPort;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::pipe::Pipe;

/// Why there is no Unix socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Whatever the operating system says.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A process listens there.
    #[error("another process accepts clients there; end it, or configure another port or directory")]
    InUse,
    /// A file, or a directory.
    #[error("what is there is no socket; remove it, or configure another port or directory")]
    NoSocket,
}

/// A client that has come, before it was heard.
#[derive(Debug)]
pub(crate) enum Visitor {
    Tcp(TcpStream),
    Local(UnixStream),
    /// No thread watches it.
    TcpAway(std::net::TcpStream),
    LocalAway(std::os::unix::net::UnixStream),
}

impl Visitor {
    /// Another thread is going to look after it.
    pub(crate) fn leave(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::TcpAway(stream.into_std()?),
            Self::Local(stream) => Self::LocalAway(stream.into_std()?),
            away => away,
        })
    }

    /// This thread looks after it from now on.
    pub(crate) fn settle(self) -> io::Result<Pipe> {
        match self {
            Self::Tcp(stream) => Pipe::new(stream),
            Self::Local(stream) => Ok(Pipe::local(stream)),
            Self::TcpAway(stream) => Pipe::new(stream.try_into()?),
            Self::LocalAway(stream) => Ok(Pipe::local(stream.try_into()?)),
        }
    }
}

/// Waits for clients.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Local { listener: UnixListener, _file: SocketFile },
}

impl Listener {
    /// Listens on an address.
    pub(crate) async fn tcp(address: &HostPort) -> io::Result<Self> {
        Ok(Self::Tcp(TcpListener::bind((address.host.as_str(), address.port)).await?))
    }

    /// Listens on a Unix socket with these permissions. One that a process left behind is replaced.
    pub(crate) async fn local(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_abandoned(path).await?;
                UnixListener::bind(path)?
            }
            other => other?,
        };
        let file = SocketFile::of(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        Ok(Self::Local { listener, _file: file })
    }

    /// The runtime that this is called in watches it from now on.
    pub(crate) fn settle(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.into_std()?.try_into()?),
            Self::Local { listener, _file } => {
                Self::Local { listener: listener.into_std()?.try_into()?, _file }
            }
        })
    }

    /// The next client, whom this thread watches.
    pub(crate) async fn accept(&self) -> io::Result<Visitor> {
        Ok(match self {
            Self::Tcp(listener) => Visitor::Tcp(listener.accept().await?.0),
            Self::Local { listener, .. } => Visitor::Local(listener.accept().await?.0),
        })
    }
}

/// Removes a socket on which nobody listens any more.
async fn remove_abandoned(path: &Path) -> Result<(), SocketError> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(SocketError::NoSocket);
    }
    match UnixStream::connect(path).await {
        // Only a socket without a process refuses: one that is too busy lets wait.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "removing a socket on which nobody listens");
            Ok(fs::remove_file(path)?)
        }
        _ => Err(SocketError::InUse),
    }
}

/// A socket's file, which goes with its listener.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// What tells a file from others, whatever its name: device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another process may have its own there by now.
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}
