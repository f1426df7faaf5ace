//! A hand-over between two nodes over TCP: what a pipeline over machines without a faster fabric
//! pays. Node 0 listens and decides; node 1 sends every message back as soon as it has all of it.
//! A sample is half of such a round trip, by node 0's clock.

use super::ring::Effort;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Name for manifests. The number rises when a change makes it faster or slower, or the two sides no
/// longer understand each other.
pub const NAME: &str = "vidur-tcp 1 (half a round trip)";

/// What both sides say first.
const GREETING: &[u8; 12] = b"vidur-tcp 1\n";

/// The largest message: node 1 holds all of it.
pub const MOST_BYTES: u64 = 1 << 30;

/// Between two looks at whether somebody is there.
const PAUSE: Duration = Duration::from_millis(20);

/// One attempt at one address: a name may have several, some of which a firewall swallows.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Executions before the first sample.
const WARM_UP: u32 = 3;

/// The connection between the two nodes.
#[derive(Debug)]
pub struct Link {
    stream: TcpStream,
    buffer: Vec<u8>,
    limit: Duration,
}

impl Link {
    /// Node 0: waits at the port of `address` until node 1 comes. It listens at all addresses of
    /// this node: what the others call it by may be its loopback here (Debian's 127.0.1.1), or
    /// belong to a router before it.
    ///
    /// # Errors
    /// One line: the port cannot be had, or nobody came within `limit`.
    pub fn listen(address: &str, limit: Duration) -> Result<Link, String> {
        let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let port = port.ok_or_else(|| {
            format!("{address}: no port; give --master-addr as HOST:PORT of node 0")
        })?;
        let everywhere: [SocketAddr; 2] =
            [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()];
        let listener = TcpListener::bind(everywhere.as_slice()).map_err(|e| {
            format!(
                "cannot listen at port {port}: {e}; give --master-addr a free port of this node"
            )
        })?;
        listener.set_nonblocking(true).map_err(|e| e.to_string())?;
        let end = Instant::now() + limit;
        while Instant::now() < end {
            match listener.accept() {
                // Whoever else knocks is sent away.
                Ok((stream, _)) => match Link::greet(stream, limit) {
                    Ok(link) => return Ok(link),
                    Err(_) => continue,
                },
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
        Err(format!(
            "node 1 did not come to {address} within {}; run the same command there with --node-rank 1",
            humantime::format_duration(limit)
        ))
    }

    /// Node 1: knocks at `address` until node 0 opens.
    ///
    /// # Errors
    /// One line: no such address, or nobody answered within `limit`.
    pub fn connect(address: &str, limit: Duration) -> Result<Link, String> {
        let end = Instant::now() + limit;
        let mut last = String::from("no such address");
        while Instant::now() < end {
            let found = address.to_socket_addrs().map_err(|e| {
                format!("{address}: {e}; give --master-addr as HOST:PORT of node 0")
            })?;
            for place in found {
                let left = end.saturating_duration_since(Instant::now());
                let link = TcpStream::connect_timeout(&place, left.clamp(PAUSE, ATTEMPT))
                    .map_err(|e| e.to_string())
                    .and_then(|stream| Link::greet(stream, limit));
                match link {
                    Ok(link) => return Ok(link),
                    Err(e) => last = e,
                }
            }
            std::thread::sleep(PAUSE);
        }
        Err(format!(
            "no node 0 at {address} within {} ({last}); run the same command there with --node-rank 0",
            humantime::format_duration(limit)
        ))
    }

    fn greet(stream: TcpStream, limit: Duration) -> Result<Link, String> {
        let words = |e: std::io::Error| e.to_string();
        stream.set_nonblocking(false).map_err(words)?;
        stream.set_nodelay(true).map_err(words)?;
        // Somebody else's connection must not hold up the other node's.
        let patience = limit.min(Duration::from_secs(5));
        stream.set_read_timeout(Some(patience)).map_err(words)?;
        stream.set_write_timeout(Some(limit)).map_err(words)?;
        let mut link = Link { stream, buffer: Vec::new(), limit };
        link.stream.write_all(GREETING).map_err(words)?;
        let mut theirs = [0; GREETING.len()];
        link.stream.read_exact(&mut theirs).map_err(words)?;
        if &theirs != GREETING {
            return Err("whoever is there is no vidur of this version".into());
        }
        link.stream.set_read_timeout(Some(limit)).map_err(words)?;
        Ok(link)
    }

    /// What a failure of the connection means.
    fn gone(&self, bytes: u64) -> impl Fn(std::io::Error) -> String + use<> {
        let limit = humantime::format_duration(self.limit).to_string();
        move |e| match e.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("the other node did not answer within {limit}, at {bytes} bytes")
            }
            _ => format!("the other node went away at {bytes} bytes ({e})"),
        }
    }

    /// Node 0: milliseconds that `bytes` take from one node to the other.
    ///
    /// # Errors
    /// One line: the message is too large, or the other node is gone.
    pub fn measure(&mut self, bytes: u64, effort: Effort) -> Result<Vec<f64>, String> {
        if bytes == 0 || bytes > MOST_BYTES {
            return Err(format!("{bytes} bytes: expected 1 to {MOST_BYTES} between nodes"));
        }
        let gone = self.gone(bytes);
        self.buffer.resize(bytes as usize, 0);
        let (mut samples, begin) = (Vec::new(), Instant::now());
        let mut rounds = WARM_UP;
        loop {
            self.stream.write_all(&order(bytes, rounds)).map_err(&gone)?;
            for _ in 0..rounds {
                let start = Instant::now();
                self.stream.write_all(&self.buffer).map_err(&gone)?;
                self.stream.read_exact(&mut self.buffer).map_err(&gone)?;
                samples.push(start.elapsed().as_secs_f64() * 1e3 / 2.0);
            }
            if samples.len() == WARM_UP as usize {
                rounds = effort.repeats.max(1);
            } else if begin.elapsed() >= effort.min_time {
                samples.drain(..WARM_UP as usize);
                return Ok(samples);
            }
        }
    }

    /// Node 0: lets node 1 go.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn finish(&mut self) -> Result<(), String> {
        let gone = self.gone(0);
        self.stream.write_all(&order(0, 0)).map_err(gone)
    }

    /// Node 1: sends messages back until node 0 is done.
    ///
    /// # Errors
    /// One line: the other node is gone, or asks for what is no message.
    pub fn echo(&mut self) -> Result<(), String> {
        let mut bytes = 0;
        loop {
            let gone = self.gone(bytes);
            let mut order = [0; 12];
            self.stream.read_exact(&mut order).map_err(&gone)?;
            let (size, rounds) = order.split_at(8);
            let number =
                |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b));
            bytes = number(size);
            if bytes == 0 {
                return Ok(());
            }
            if bytes > MOST_BYTES {
                return Err(format!(
                    "the other node asks for {bytes} bytes, more than {MOST_BYTES}"
                ));
            }
            self.buffer.resize(bytes as usize, 0);
            let gone = self.gone(bytes);
            for _ in 0..number(rounds) {
                self.stream.read_exact(&mut self.buffer).map_err(&gone)?;
                self.stream.write_all(&self.buffer).map_err(&gone)?;
            }
        }
    }
}

/// What node 0 announces: bytes of the next messages and how many, little-endian; 0 bytes are the end.
fn order(bytes: u64, rounds: u32) -> [u8; 12] {
    let mut order = [0; 12];
    order[..8].copy_from_slice(&bytes.to_le_bytes());
    order[8..].copy_from_slice(&rounds.to_le_bytes());
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn pair() -> (Link, Link) {
        let address = super::super::distributed::local_master().unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| Link::connect(&address, LIMIT).unwrap());
            (Link::listen(&address, LIMIT).unwrap(), other.join().unwrap())
        })
    }

    #[test]
    fn messages_go_there_and_back_and_large_ones_take_longer() {
        let (mut zero, mut one) = pair();
        let other = std::thread::spawn(move || one.echo());
        let effort = Effort { repeats: 5, min_time: Duration::from_millis(5) };
        let mut median = |bytes| {
            let ms = zero.measure(bytes, effort).unwrap();
            assert!(ms.len() >= 5 && ms.iter().all(|&ms| ms > 0.0));
            crate::stats::median(&ms).unwrap()
        };
        assert!(median(16 << 20) > 4.0 * median(16 << 10));
        assert!(zero.measure(0, effort).is_err() && zero.measure(u64::MAX, effort).is_err());
        zero.finish().unwrap();
        assert_eq!(other.join().unwrap(), Ok(()));
    }

    #[test]
    fn a_node_that_goes_away_or_says_rubbish_is_told_in_one_line() {
        let effort = Effort { repeats: 5, min_time: Duration::ZERO };
        let (mut zero, one) = pair();
        drop(one);
        let message = zero.measure(4 << 20, effort).unwrap_err();
        assert!(message.contains("the other node went away at 4194304 bytes"), "{message}");
        let (zero, mut one) = pair();
        drop(zero);
        assert!(one.echo().unwrap_err().contains("went away"));
        let (mut zero, mut one) = pair();
        zero.stream.write_all(&order(u64::MAX, 1)).unwrap();
        assert!(one.echo().unwrap_err().contains("more than"));
        // Someone who is no vidur is sent away, and the wait goes on to its end.
        let address = super::super::distributed::local_master().unwrap();
        let there = address.clone();
        let stranger = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            let mut stream = TcpStream::connect(there).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        });
        let message = Link::listen(&address, Duration::from_millis(600)).unwrap_err();
        assert!(
            message.contains("node 1 did not come") && message.contains("--node-rank 1"),
            "{message}"
        );
        stranger.join().unwrap();
        let message = Link::connect(&address, Duration::from_millis(300)).unwrap_err();
        assert!(message.contains("no node 0 at") && message.contains("--node-rank 0"), "{message}");
    }
}
