//! A socket with what was read from it and not yet used, and what is to be written to it.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Room that is made for one read.
const CHUNK: usize = 16 << 10;

/// A buffer that grew beyond this is given back once it is empty.
const KEEP: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipe {
    stream: TcpStream,
    /// Read, not yet used.
    pub(crate) input: BytesMut,
    /// To be written.
    pub(crate) output: BytesMut,
}

impl Pipe {
    /// Wraps a connected socket.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: BytesMut::new(), output: BytesMut::new() })
    }

    /// Reads what there is; an end of the stream is an error.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.reserve(CHUNK);
        // Nothing is lost when the future is dropped: it either read into the buffer or did not.
        let read = pin!(self.stream.read_buf(&mut self.input)).poll(cx);
        read.map(|result| match result {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        })
    }

    /// Reads what there is, at least one byte.
    pub(crate) async fn fill(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Writes some of `output`, then of `more`; says how many bytes of `more` went out.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        let slices = [IoSlice::new(&self.output), IoSlice::new(more)];
        let slices = if self.output.is_empty() { slices.get(1..) } else { Some(slices.as_slice()) };
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices.unwrap_or_default());
        written.map(|result| {
            let written = result?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let own = written.min(self.output.len());
            self.output.advance(own);
            Ok(written - own)
        })
    }

    /// Writes all of `output`.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all_buf(&mut self.output).await
    }

    /// Gives back what large messages made the buffers grow to.
    pub(crate) fn shrink(&mut self) {
        for buffer in [&mut self.input, &mut self.output] {
            if buffer.is_empty() && buffer.capacity() > KEEP {
                *buffer = BytesMut::new();
            }
        }
    }
}
