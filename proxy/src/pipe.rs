//! A socket with what was read from it and not yet used, and what is to be written to it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use crate::wire::frame;

/// Room for one read. Whoever sends that much in one is expected to send more.
const CHUNK: usize = 16 << 10;

/// The memory of a buffer that grew beyond this is not kept.
const KEEP: usize = 4 << 10;

/// So many buffers that are not in use are kept by a thread.
const SPARE: usize = 64;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
    /// Buffers of sockets that are silent now: who comes next gets the one that was used last.
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty one.
pub(crate) fn buffer() -> BytesMut {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// An empty one is not needed any more. The memory of one that grew is not kept.
pub(crate) fn give_back(buffer: BytesMut) {
    BUFFERS.with_borrow_mut(|spare| {
        if (1..=KEEP).contains(&buffer.capacity()) && spare.len() < SPARE {
            spare.push(buffer);
        }
    });
}

/// Gives memory to a buffer that has none.
fn lend(to: &mut BytesMut) {
    if to.capacity() == 0 {
        *to = buffer();
    }
}

/// Takes the memory of an empty buffer away.
fn take_back(from: &mut BytesMut) {
    if from.is_empty() && from.capacity() > 0 {
        give_back(std::mem::take(from));
    }
}

/// What carries the bytes.
#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Local(UnixStream),
    /// A handshake has it, or had it and failed.
    Away,
}

impl Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, read: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, read),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, read),
            Self::Local(stream) => Pin::new(stream).poll_read(cx, read),
            Self::Away => Poll::Ready(Err(away())),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipe {
    stream: Stream,
    /// Much came in the last read.
    much: bool,
    /// Bytes that came.
    pub(crate) received: u64,
    /// Bytes that went.
    pub(crate) sent: u64,
    /// TLS took bytes that the socket has not taken yet.
    unflushed: bool,
    /// Read, not yet used.
    pub(crate) input: BytesMut,
    /// To be written.
    pub(crate) output: BytesMut,
}

impl Pipe {
    /// Wraps a connected socket.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::over(Stream::Plain(stream)))
    }

    /// Wraps a connection within this machine.
    pub(crate) fn local(stream: UnixStream) -> Self {
        Self::over(Stream::Local(stream))
    }

    /// Wraps an encrypted connection.
    pub(crate) fn encrypted(stream: TlsStream<TcpStream>) -> io::Result<Self> {
        stream.get_ref().0.set_nodelay(true)?;
        Ok(Self::over(Stream::Tls(Box::new(stream))))
    }

    fn over(stream: Stream) -> Self {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { stream, much: false, received: 0, sent: 0, unflushed: false, input, output }
    }

    /// The runtime of this thread watches the socket from now on. An encrypted one stays where it is, and each word of it
    /// wakes that thread first.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        self.stream = match std::mem::replace(&mut self.stream, Stream::Away) {
            Stream::Plain(stream) => Stream::Plain(TcpStream::from_std(stream.into_std()?)?),
            Stream::Local(stream) => Stream::Local(UnixStream::from_std(stream.into_std()?)?),
            other @ (Stream::Tls(_) | Stream::Away) => other,
        };
        Ok(())
    }

    /// Whether another thread can watch it just as well.
    pub(crate) fn moves(&self) -> bool {
        matches!(self.stream, Stream::Plain(_) | Stream::Local(_))
    }

    /// From here on everything is encrypted. Nothing may be left in the buffers.
    pub(crate) async fn secure<F>(&mut self, handshake: impl FnOnce(TcpStream) -> F) -> io::Result<()>
    where
        F: Future<Output = io::Result<TlsStream<TcpStream>>>,
    {
        assert!(self.input.is_empty() && self.output.is_empty(), "bytes in clear would count as encrypted");
        let Stream::Plain(stream) = std::mem::replace(&mut self.stream, Stream::Away) else {
            return Err(away());
        };
        self.stream = Stream::Tls(Box::new(handshake(stream).await?));
        Ok(())
    }

    /// The TLS session, if there is one.
    pub(crate) fn tls(&self) -> Option<&TlsStream<TcpStream>> {
        match &self.stream {
            Stream::Tls(stream) => Some(stream),
            Stream::Plain(_) | Stream::Local(_) | Stream::Away => None,
        }
    }

    /// Whether it never leaves this machine, so that there is neither an address nor TLS.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.stream, Stream::Local(_))
    }

    /// The first byte that comes, which is not taken. Only before anything was read.
    pub(crate) async fn peek(&self) -> io::Result<u8> {
        let Stream::Plain(stream) = &self.stream else { return Err(away()) };
        let mut first = [0];
        match stream.peek(&mut first).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(u8::from_be_bytes(first)),
        }
    }

    /// The address of the other end; `None` within this machine.
    pub(crate) fn peer(&self) -> io::Result<Option<IpAddr>> {
        let stream = match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
            Stream::Local(_) => return Ok(None),
            Stream::Away => return Err(away()),
        };
        Ok(Some(stream.peer_addr()?.ip().to_canonical()))
    }

    /// Reads what there is; an end of the stream is an error.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is lost when the future is dropped: it either read into the buffer or did not.
        let count = match self.much {
            true => ready!(self.poll_fill_in_place(cx))?,
            false => ready!(SCRATCH.with_borrow_mut(|scratch| self.poll_fill_through(cx, scratch)))?,
        };
        self.filled(count)
    }

    /// The same, of what is there already: nobody is woken by what comes later, and whoever waits for that says so
    /// then.
    pub(crate) fn fill_now(&mut self) -> Poll<io::Result<()>> {
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let read = match &mut self.stream {
                Stream::Plain(stream) => stream.try_read(scratch),
                Stream::Local(stream) => stream.try_read(scratch),
                Stream::Tls(_) | Stream::Away => {
                    return self.poll_fill_through(&mut Context::from_waker(Waker::noop()), scratch);
                }
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
                Ok(count) => {
                    lend(&mut self.input);
                    self.input.extend_from_slice(scratch.get(..count).unwrap_or_default());
                    Poll::Ready(Ok(count))
                }
            }
        });
        self.filled(ready!(read)?)
    }

    fn filled(&mut self, count: usize) -> Poll<io::Result<()>> {
        self.received += u64::try_from(count).unwrap_or(0);
        self.much = count >= CHUNK;
        if count == 0 { Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())) } else { Poll::Ready(Ok(())) }
    }

    /// By way of memory that all sockets of this thread share: what comes is mostly short, and a buffer that is always
    /// ready for much would be most of what an idle client costs.
    fn poll_fill_through(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(scratch);
        ready!(self.stream.poll_read(cx, &mut read))?;
        lend(&mut self.input);
        self.input.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Without a copy, since there is much to come.
    fn poll_fill_in_place(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.input.reserve(2 * CHUNK);
        match &mut self.stream {
            Stream::Plain(stream) => pin!(stream.read_buf(&mut self.input)).poll(cx),
            Stream::Tls(stream) => pin!(stream.read_buf(&mut self.input)).poll(cx),
            Stream::Local(stream) => pin!(stream.read_buf(&mut self.input)).poll(cx),
            Stream::Away => Poll::Ready(Err(away())),
        }
    }

    /// Reads what there is, at least one byte.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Whether [`Self::poll_drain`] has something to do.
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty() || self.unflushed
    }

    /// Writes some of `output`, then of `more`; says how many bytes of `more` went out.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        let empty = self.output.is_empty() && more.is_empty();
        let written = match &mut self.stream {
            Stream::Plain(stream) => ready!(write_both(Pin::new(stream), cx, &self.output, more))?,
            Stream::Local(stream) => ready!(write_both(Pin::new(stream), cx, &self.output, more))?,
            Stream::Tls(stream) => {
                let written = ready!(write_both(Pin::new(&mut **stream), cx, &self.output, more))?;
                // What the socket does not take now is on its way until a flush says otherwise.
                self.unflushed = Pin::new(&mut **stream).poll_flush(cx)?.is_pending();
                if empty {
                    return if self.unflushed { Poll::Pending } else { Poll::Ready(Ok(0)) };
                }
                written
            }
            Stream::Away => return Poll::Ready(Err(away())),
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.sent += u64::try_from(written).unwrap_or(0);
        let own = written.min(self.output.len());
        frame::consume(&mut self.output, own);
        Poll::Ready(Ok(written - own))
    }

    /// Writes what the socket takes at once. Whether that was all: otherwise nobody is woken yet when it takes more.
    pub(crate) fn flush_now(&mut self) -> io::Result<bool> {
        while !self.output.is_empty() {
            let written = match &self.stream {
                Stream::Plain(stream) => stream.try_write(&self.output),
                Stream::Local(stream) => stream.try_write(&self.output),
                Stream::Tls(_) | Stream::Away => return Ok(false),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += u64::try_from(count).unwrap_or(0);
                    frame::consume(&mut self.output, count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(!self.unflushed)
    }

    /// Writes all of `output`.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            while self.has_output() {
                ready!(self.poll_drain(cx, &[]))?;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Writes all of `output` and says that nothing will follow.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.flush().await?;
        match &mut self.stream {
            Stream::Tls(stream) => stream.shutdown().await,
            Stream::Plain(stream) => stream.shutdown().await,
            Stream::Local(stream) => stream.shutdown().await,
            Stream::Away => Ok(()),
        }
    }

    /// What its buffers take, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.input.capacity() + self.output.capacity()
    }

    /// Something is going to be written.
    pub(crate) fn prepare(&mut self) {
        lend(&mut self.output);
    }

    /// Gives back the memory of empty buffers: for when nothing is said for a while.
    pub(crate) fn shrink(&mut self) {
        take_back(&mut self.input);
        take_back(&mut self.output);
    }
}

/// Writes some of one and then of the other.
fn write_both(
    stream: Pin<&mut impl AsyncWrite>,
    cx: &mut Context<'_>,
    one: &[u8],
    other: &[u8],
) -> Poll<io::Result<usize>> {
    // The kernel is quicker with one piece than with a list of pieces, even of one.
    match (one.is_empty(), other.is_empty()) {
        (true, _) => stream.poll_write(cx, other),
        (_, true) => stream.poll_write(cx, one),
        _ => stream.poll_write_vectored(cx, &[IoSlice::new(one), IoSlice::new(other)]),
    }
}

fn away() -> io::Error {
    io::ErrorKind::NotConnected.into()
}
