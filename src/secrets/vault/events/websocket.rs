//! The little of RFC 6455 that a listener needs: the client's half of the handshake, reading frames, and answering pings.
//!
//! The connection is the one of the HTTP client, upgraded, so TLS and destination are those of every other request. Invariants: a message is
//! at most `LARGEST` bytes; what is sent is masked, with an empty payload or that of a ping of at most 125 bytes; anything that the protocol
//! does not allow ends the connection.

use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

pub(super) struct WebSocket {
    stream: reqwest::Upgraded,
    /// The message whose last frame has not come yet.
    message: Vec<u8>,
}

pub(super) enum Heard {
    /// One message of text.
    Text(Vec<u8>),
    /// A sign of life.
    Other,
    Closed,
}

/// A fresh `Sec-WebSocket-Key`.
pub(super) fn key() -> String {
    let mut bytes = [0; 16];
    // A key that is not random still works: it is no secret, it only keeps caches from answering.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    STANDARD.encode(bytes)
}

/// What the server answers to a key (RFC 6455, 4.2.2).
fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

impl WebSocket {
    /// Takes over the connection of an answer 101.
    pub async fn open(response: reqwest::Response, key: &str) -> Result<Self, &'static str> {
        let answered = response.headers().get("sec-websocket-accept").map(|value| value.as_bytes().to_vec());
        if response.status().as_u16() != 101 || answered.as_deref() != Some(accept(key).as_bytes()) {
            return Err("something that is not a WebSocket");
        }
        let upgraded = timeout(AT_MOST, response.upgrade()).await;
        let stream = upgraded.map_err(|_| "no WebSocket in time")?.map_err(|_| "no WebSocket")?;
        Ok(Self { stream, message: Vec::new() })
    }

    /// The next message or sign of life. Not to be dropped in the middle of a frame: after that only `close` makes sense.
    pub async fn next(&mut self) -> io::Result<Heard> {
        let mut head = [0; 2];
        // Nothing is lost when this is dropped before the first byte, which is where a silent connection waits.
        head[0] = self.stream.read_u8().await?;
        timeout(AT_MOST, self.rest(head)).await?
    }

    async fn rest(&mut self, mut head: [u8; 2]) -> io::Result<Heard> {
        head[1] = self.stream.read_u8().await?;
        let (last, reserved, kind) = (head[0] & 0x80 != 0, head[0] & 0x70, head[0] & 0x0f);
        let masked = head[1] & 0x80 != 0;
        let length = match head[1] & 0x7f {
            126 => usize::from(self.stream.read_u16().await?),
            127 => usize::try_from(self.stream.read_u64().await?).unwrap_or(usize::MAX),
            length => usize::from(length),
        };
        let control = kind >= 8;
        if reserved != 0 || masked || length.saturating_add(self.message.len()) > LARGEST || control && length > 125 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).await?;
        match kind {
            0 | 1 => {
                self.message.append(&mut payload);
                Ok(if last { Heard::Text(std::mem::take(&mut self.message)) } else { Heard::Other })
            }
            8 => Ok(Heard::Closed),
            9 => {
                self.send(10, &payload).await?;
                Ok(Heard::Other)
            }
            10 => Ok(Heard::Other),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    pub async fn ping(&mut self) -> io::Result<()> {
        self.send(9, &[]).await
    }

    /// Says goodbye if that is quickly done.
    pub async fn close(mut self) {
        let _ = self.send(8, &[]).await;
        let _ = timeout(AT_MOST, self.stream.shutdown()).await;
    }

    async fn send(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        timeout(AT_MOST, self.stream.write_all(&frame(kind, payload))).await?
    }
}

/// One frame of a client, masked with zeros: the mask protects nothing here, since what is sent is empty or the server's own.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len().min(125);
    let mut frame = vec![0x80 | kind, 0x80 | length as u8, 0, 0, 0, 0];
    frame.extend_from_slice(&payload[..length]);
    frame
}

const LARGEST: usize = 64 * 1024;
const AT_MOST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_that_of_the_standard() {
        // RFC 6455, 1.3.
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(key(), key());
        assert_eq!(STANDARD.decode(key()).unwrap().len(), 16);
    }

    #[test]
    fn a_frame_of_a_client_is_masked_and_short() {
        assert_eq!(frame(10, b"hi"), [0x8a, 0x82, 0, 0, 0, 0, b'h', b'i']);
        assert_eq!(frame(9, &[]), [0x89, 0x80, 0, 0, 0, 0]);
        assert_eq!(frame(10, &[7; 200]).len(), 131);
    }
}
