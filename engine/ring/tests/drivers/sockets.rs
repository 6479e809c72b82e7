//! Connections.

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use ring::{BufferedReader, DriverChoice, Gather, IoBuf, IoBufExt, LEAD_BYTES, Options, Ring, Stream};

use crate::on_both_drivers;

fn here() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Both ends of a connection.
async fn pair(ring: &Ring) -> (Stream, Stream) {
    let listener = ring.listen(here()).unwrap();
    let client = ring.connect(listener.local(), None).await.unwrap();
    let server = listener.accept().await.unwrap();
    assert_eq!(client.local(), server.peer());
    assert_eq!(client.peer(), server.local());
    (client, server)
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

on_both_drivers! {
    async fn a_watched_descriptor_is_readable_when_something_came_or_the_other_side_is_gone(ring: Ring) {
        use std::io::{Read, Write};
        let (mut near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let watched = ring.watch(near.try_clone().unwrap().into());
        assert!(ring.timeout(Duration::from_millis(20), watched.readable()).await.is_err(), "nothing is there");
        far.write_all(b"x").unwrap();
        watched.readable().await.unwrap();
        assert_eq!(near.read(&mut [0; 8]).unwrap(), 1);
        // What comes while somebody waits ends the wait.
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            far.write_all(b"y").unwrap();
        });
        watched.readable().await.unwrap();
        assert_eq!(near.read(&mut [0; 8]).unwrap(), 1);
        writer.join().unwrap();
        watched.readable().await.unwrap();
        assert_eq!(near.read(&mut [0; 8]).unwrap(), 0);
    }

    async fn bytes_arrive_and_then_the_end(ring: Ring) {
        let (client, server) = pair(&ring).await;
        client.send_all(b"hello").await.0.unwrap();
        let (result, buffer) = server.recv(vec![0; 100]).await;
        assert_eq!(&buffer[..result.unwrap()], b"hello");
        drop(client);
        assert_eq!(server.recv(vec![0; 100]).await.0.unwrap(), 0);
        let (result, _) = server.recv_exact(vec![0; 1]).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    async fn large_sends_and_exact_receives_of_any_size_meet(ring: Ring) {
        let (client, server) = pair(&ring).await;
        let total = 5_000_000;
        let sender = ring.spawn(async move {
            let data = pattern(total);
            let (result, head, tail) = client.send_two(data[..1_000_001].to_vec(), data[1_000_001..].to_vec()).await;
            result.unwrap();
            assert_eq!(head.len() + tail.len(), total);
        });
        let mut received = Vec::new();
        for part in [1, 7, 65_536, 1_000_000, total - 1_065_544] {
            let (result, bytes) = server.recv_exact(vec![0; part]).await;
            result.unwrap();
            received.extend(bytes);
        }
        assert!(received == pattern(total));
        sender.await.unwrap();
    }

    async fn a_block_is_sent_with_its_head_in_one_piece(ring: Ring) {
        let (client, server) = pair(&ring).await;
        let mut block = ring.buffer().unwrap();
        block.lead_mut()[LEAD_BYTES - 4..].copy_from_slice(b"head");
        block.payload_mut().copy_from_slice(&pattern(65_536));
        let (result, framed) = client.send_all(block.with_head(4, 65_536)).await;
        result.unwrap();
        drop(framed.into_block());
        let (result, head) = server.recv_exact(vec![0; 4]).await;
        result.unwrap();
        assert_eq!(head, b"head");
        let (result, block) = server.recv_exact(ring.buffer().unwrap()).await;
        result.unwrap();
        assert!(block.payload() == pattern(65_536));
        let (result, slice) = server.recv_exact(ring.buffer().unwrap().slice(0..0)).await;
        result.unwrap();
        assert!(slice.as_bytes().is_empty());
    }

    async fn a_refused_connection_says_so(ring: Ring) {
        let closed = ring.listen(here()).unwrap().local();
        ring.yield_now().await;
        ring.sleep(Duration::from_millis(5)).await;
        let error = ring.connect(closed, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    async fn a_connection_starts_at_the_address_asked_for(ring: Ring) {
        let listener = ring.listen(here()).unwrap();
        let from = "127.0.0.7".parse().unwrap();
        let client = ring.connect(listener.local(), Some(from)).await.unwrap();
        assert_eq!(client.local().ip(), from);
        assert_eq!(listener.accept().await.unwrap().peer(), client.local());
    }

    async fn a_port_that_is_taken_is_refused(ring: Ring) {
        let listener = ring.listen(here()).unwrap();
        let error = ring.listen(listener.local()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    async fn shutdown_wakes_a_pending_receive_and_a_pending_send(ring: Ring) {
        let (client, server) = pair(&ring).await;
        let receiver = client.clone();
        let receive = ring.spawn(async move { receiver.recv(vec![0; 10]).await.0 });
        let sender = client.clone();
        let send = ring.spawn(async move { sender.send_all(vec![0; 100 << 20]).await.0 });
        ring.sleep(Duration::from_millis(20)).await;
        assert!(!receive.is_finished() && !send.is_finished());
        client.shutdown();
        assert!(matches!(receive.await.unwrap(), Ok(0) | Err(_)));
        send.await.unwrap().unwrap_err();
        drop(server);
    }

    async fn a_dropped_receive_frees_its_buffer_and_leaves_the_connection_usable(ring: Ring) {
        let (client, server) = pair(&ring).await;
        let all = ring.free_buffers();
        let block = ring.buffer().unwrap();
        assert!(ring.timeout(Duration::from_millis(5), server.recv(block)).await.is_err());
        ring.sleep(Duration::from_millis(5)).await;
        assert_eq!(ring.free_buffers(), all, "the cancelled receive has given its block back");
        client.send_all(b"later").await.0.unwrap();
        let (result, buffer) = server.recv_exact(vec![0; 5]).await;
        result.unwrap();
        assert_eq!(buffer, b"later");
    }

    async fn a_dropped_accept_does_not_lose_the_listener(ring: Ring) {
        let listener = ring.listen(here()).unwrap();
        assert!(ring.timeout(Duration::from_millis(2), listener.accept()).await.is_err());
        ring.sleep(Duration::from_millis(2)).await;
        let client = ring.connect(listener.local(), None).await.unwrap();
        assert_eq!(listener.accept().await.unwrap().peer(), client.local());
    }

    async fn fills_that_are_dropped_half_way_lose_nothing(ring: Ring) {
        let (client, server) = pair(&ring).await;
        let total = 300_000;
        let ring_ = ring.clone();
        let sender = ring.spawn(async move {
            let data = pattern(total);
            for part in data.chunks(997) {
                client.send_all(part.to_vec()).await.0.unwrap();
                if part[0] % 5 == 0 {
                    ring_.sleep(Duration::from_micros(300)).await;
                }
            }
        });
        let mut reader = BufferedReader::new(server, 1024);
        let mut received: Vec<u8> = Vec::new();
        let dropped = Cell::new(0);
        while received.len() < total {
            let wanted = (1 + received.len() % 3000).min(total - received.len());
            match ring.timeout(Duration::from_micros(100), reader.fill(wanted)).await {
                Ok(filled) => {
                    filled.unwrap();
                    if received.len().is_multiple_of(7) {
                        let (result, bytes) = reader.read_into(vec![0; wanted]).await;
                        result.unwrap();
                        received.extend(bytes);
                    } else {
                        received.extend(&reader.buffered()[..wanted]);
                        reader.consume(wanted);
                    }
                }
                Err(_) => dropped.set(dropped.get() + 1),
            }
        }
        assert!(received == pattern(total));
        assert!(dropped.get() > 0, "some fills were dropped");
        sender.await.unwrap();
        assert_eq!(reader.fill(1).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    async fn a_reader_takes_heads_from_its_buffer_and_payload_past_it(ring: Ring) {
        let (client, server) = pair(&ring).await;
        ring.spawn(async move {
            for _ in 0..50 {
                client.send_two(b"12345678", pattern(65_536)).await.0.unwrap();
            }
        });
        let mut reader = BufferedReader::new(server, 8192);
        for _ in 0..50 {
            assert_eq!(&reader.fill(8).await.unwrap()[..8], b"12345678");
            reader.consume(8);
            let (result, block) = reader.read_into(ring.buffer().unwrap()).await;
            result.unwrap();
            assert!(block.payload() == pattern(65_536));
        }
        assert_eq!(reader.more().await.unwrap(), 0);
    }

    async fn many_packets_leave_in_one_send(ring: Ring) {
        let (client, server) = pair(&ring).await;
        let sender = ring.clone();
        ring.spawn(async move {
            let mut gather = Gather::new();
            for round in 0..20u8 {
                let mut block = sender.wait_buffer().await;
                block.payload_mut().copy_from_slice(&pattern(65_536));
                block.lead_mut()[LEAD_BYTES - 1] = round;
                let block = block.share();
                let mut number = 0;
                while gather.has_room(8) {
                    gather.push(&[number; 8]);
                    match number % 2 {
                        0 => gather.push_payload(block.clone(), 1000..61_000 + usize::from(number)),
                        _ => gather.push_framed(block.clone(), 1, 10),
                    }
                    number += 1;
                }
                gather.push(b"the");
                gather.push(b" end");
                let (result, back) = client.send_gather(gather).await;
                result.unwrap();
                gather = back;
                gather.clear();
                assert!(block.unshare().is_ok(), "nobody else has it any more");
            }
        });
        let mut reader = BufferedReader::new(server, 8192);
        for round in 0..20u8 {
            for number in 0..16 {
                assert_eq!(reader.fill_exactly(8).await.unwrap(), [number; 8]);
                assert_eq!(reader.buffered().len(), 8, "what comes behind stays where it is");
                reader.consume(8);
                let length = if number % 2 == 0 { 60_000 + usize::from(number) } else { 11 };
                let (result, bytes) = reader.read_into(vec![0; length]).await;
                result.unwrap();
                match number % 2 {
                    0 => assert!(bytes == pattern(65_536)[1000..1000 + length]),
                    _ => assert!(bytes[0] == round && bytes[1..] == pattern(10)),
                }
            }
            assert_eq!(reader.fill_exactly(7).await.unwrap(), b"the end");
            reader.consume(7);
        }
    }

    async fn a_connection_that_was_used_often_ends_when_it_is_dropped(ring: Ring) {
        for _ in 0..5 {
            let (client, server) = pair(&ring).await;
            for _ in 0..30 {
                client.send_all(vec![1; 40_000]).await.0.unwrap();
                server.recv_exact(vec![0; 40_000]).await.0.unwrap();
            }
            drop(server);
            assert_eq!(client.recv(vec![0; 1]).await.0.unwrap(), 0);
        }
    }

    async fn a_connection_moves_to_another_ring(ring: Ring) {
        let (client, server) = pair(&ring).await;
        client.send_all(b"before").await.0.unwrap();
        server.recv_exact(vec![0; 6]).await.0.unwrap();
        let in_use = server.clone();
        let server = server.detach().err().expect("another handle is there");
        drop(in_use);
        let moved = server.detach().expect("the only handle");
        let here = ring.driver_name();
        let thread = std::thread::spawn(move || {
            // The other driver, where sockets are in the other mode.
            let driver = if here == "epoll" { DriverChoice::Auto } else { DriverChoice::Epoll };
            ring::run(Options { driver, ..Options::default() }, |ring| async move {
                let stream = ring.attach(moved).unwrap();
                let (result, bytes) = stream.recv_exact(vec![0; 5]).await;
                result.unwrap();
                stream.send_all(bytes).await.0.unwrap();
            })
        });
        client.send_all(b"after").await.0.unwrap();
        let (result, bytes) = client.recv_exact(vec![0; 5]).await;
        result.unwrap();
        assert_eq!(bytes, b"after");
        assert_eq!(client.recv(vec![0; 1]).await.0.unwrap(), 0);
        thread.join().unwrap().unwrap();
    }

    async fn a_reader_gives_up_its_connection_with_what_it_buffered(ring: Ring) {
        let (client, server) = pair(&ring).await;
        client.send_all(b"first second").await.0.unwrap();
        let mut reader = BufferedReader::new(server.clone(), 64);
        reader.fill(12).await.unwrap();
        reader.consume(6);
        drop(server);
        let (stream, buffered) = reader.into_parts().expect("no receive is under way");
        assert_eq!(buffered, b"second");
        let moved = stream.detach().expect("the only handle");
        let options = ring.options().expect("a real ring");
        let thread = std::thread::spawn(move || {
            ring::run(options, |ring| async move {
                let mut reader = BufferedReader::with_buffered(ring.attach(moved).unwrap(), 64, &buffered);
                assert_eq!(reader.fill(12).await.unwrap(), b"second third");
            })
        });
        client.send_all(b" third").await.0.unwrap();
        thread.join().unwrap().unwrap();
        let (_client, server) = pair(&ring).await;
        let mut reader = BufferedReader::new(server, 64);
        assert!(reader.more().now_or_never().is_none());
        assert!(reader.into_parts().is_none(), "its bytes would come too late");
    }

    async fn one_sender_does_not_keep_others_from_running(ring: Ring) {
        let (client, server) = pair(&ring).await;
        let ticks = Rc::new(Cell::new(0));
        let (ring_, ticks_) = (ring.clone(), ticks.clone());
        ring.spawn(async move {
            loop {
                ring_.sleep(Duration::from_millis(1)).await;
                ticks_.set(ticks_.get() + 1);
            }
        });
        let start = ring.now();
        while start.elapsed(&ring) < Duration::from_millis(50) {
            client.send_all(b"x").await.0.unwrap();
            let (result, _) = server.recv(vec![0; 1]).await;
            result.unwrap();
        }
        assert!(ticks.get() > 2, "{} ticks", ticks.get());
    }
}
