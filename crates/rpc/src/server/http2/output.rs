//! What waits to be written to the socket.
//!
//! Small frames are gathered in one buffer, so that many answers go out with one system call; large pieces are shared,
//! not copied, and written beside it in one vectored call.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// Pieces from this size on are shared instead of copied.
const SHARED_BYTES_MIN: usize = 4096;
/// A buffer that grew beyond this is given back once it is empty.
const BUFFER_BYTES_KEPT: usize = 128 << 10;
const SLICES_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Output {
    /// Before `tail`, in order.
    sealed: VecDeque<Bytes>,
    sealed_bytes: usize,
    tail: Vec<u8>,
    /// How much of `tail` is written.
    tail_written: usize,
}

impl Output {
    pub(super) fn len(&self) -> usize {
        self.sealed_bytes + self.tail.len() - self.tail_written
    }

    /// Where to append small things.
    pub(super) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    pub(super) fn put(&mut self, bytes: Bytes) {
        if bytes.len() < SHARED_BYTES_MIN {
            return self.tail.extend_from_slice(&bytes);
        }
        let mut tail = Bytes::from(std::mem::take(&mut self.tail));
        tail.advance(std::mem::take(&mut self.tail_written));
        for piece in [tail, bytes] {
            if !piece.is_empty() {
                self.sealed_bytes += piece.len();
                self.sealed.push_back(piece);
            }
        }
    }

    /// Writes as much as the socket takes; ready once nothing is left.
    pub(super) fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.len() > 0 {
            let tail = &self.tail[self.tail_written..];
            let written = if self.sealed.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let mut count = 0;
                let pieces = self.sealed.iter().map(|piece| &piece[..]).chain([tail]);
                for (slice, piece) in slices.iter_mut().zip(pieces) {
                    *slice = IoSlice::new(piece);
                    count += 1;
                }
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Pin::new(io).poll_flush(cx)
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.sealed.front_mut() {
            let part = written.min(first.len());
            first.advance(part);
            self.sealed_bytes -= part;
            written -= part;
            if !first.is_empty() {
                return;
            }
            self.sealed.pop_front();
        }
        self.tail_written += written;
        if self.tail_written == self.tail.len() {
            self.tail_written = 0;
            if self.tail.capacity() > BUFFER_BYTES_KEPT {
                self.tail = Vec::new();
            } else {
                self.tail.clear();
            }
        }
    }
}
