//! Chunks that only a ticket opens. See `wire::ticket`.

use chunk::settings::Tickets;
use wire::*;

use crate::support::client::Client;
use crate::support::master::Master;
use crate::support::{Bed, Running, everywhere};

/// Servers that require tickets, on nodes 1 and 2.
async fn strict_servers(bed: &Bed) -> Vec<(Running, Master)> {
    let listener = Master::listen(&bed.nodes[0]);
    let mut servers = Vec::new();
    for number in 1..=2 {
        let mut settings = bed.settings(number);
        settings.auth_code = Some(b"secret".to_vec());
        settings.tickets = Tickets::Require;
        let running = bed.start_with(number, settings).await;
        servers.push((running, Master::accept(&bed.nodes[0].ring, &listener).await));
    }
    servers
}

async fn show(client: &mut Client, chunk: u64, rights: u8) {
    let expires = client.ring.wall_seconds() + 100;
    client.send(TicketKey::new(b"secret").sign(ChunkId(chunk), rights, expires).encode()).await;
}

#[test]
fn a_chunk_is_read_and_written_with_a_ticket_for_that_and_not_without() {
    everywhere(|bed| async move {
        let mut servers = strict_servers(&bed).await;
        // Of several cores each owns some of these, so connections move between them with what they showed.
        for id in 1..=4 {
            for (_, master) in &mut servers {
                assert_eq!(master.create(id, 1).await, Status::OK);
            }
        }
        let mut client = bed.client(1).await;
        let chain = [&bed.nodes[2]];
        assert_eq!(client.open_write(1, 1, &chain).await, Status::EACCES, "nothing was shown");
        for id in 1..=4 {
            let mut client = bed.client(1).await;
            assert_eq!(client.read(id, 1, 0, 5).await.1, Status::EACCES);
            show(&mut client, id, ticket_rights::READ).await;
            assert_eq!(client.read_ok(id, 1, 0, 5).await, [0; 5]);
            assert_eq!(client.read(id % 4 + 1, 1, 0, 5).await.1, Status::EACCES, "a ticket is for one chunk");
            show(&mut client, id, ticket_rights::READ).await;
            assert_eq!(client.open_write(id, 1, &chain).await, Status::EACCES, "a ticket to read is none to write");
        }
        for id in 1..=4 {
            let mut client = bed.client(1).await;
            show(&mut client, id, ticket_rights::READ | ticket_rights::WRITE).await;
            client.write(id, 1, &chain, 0, b"hello").await; // the first server has a ticket for the second
            assert_eq!(client.read_ok(id, 1, 0, 5).await, b"hello");
        }
        // Made with another secret: it takes the place of the one before.
        let mut client = bed.client(2).await;
        show(&mut client, 1, ticket_rights::READ).await;
        assert_eq!(client.read_ok(1, 1, 0, 5).await, b"hello");
        let expires = client.ring.wall_seconds() + 100;
        client.send(TicketKey::new(b"guess").sign(ChunkId(1), ticket_rights::READ, expires).encode()).await;
        assert_eq!(client.read(1, 1, 0, 5).await.1, Status::EACCES);
        for (running, _) in servers {
            running.stop().await;
        }
    });
}

#[test]
fn servers_that_require_tickets_copy_from_each_other() {
    everywhere(|bed| async move {
        let mut servers = strict_servers(&bed).await;
        assert_eq!(servers[0].1.create(9, 1).await, Status::OK);
        let mut client = bed.client(1).await;
        show(&mut client, 9, ticket_rights::WRITE).await;
        client.write(9, 1, &[], 0, b"to be copied").await;
        assert_eq!(servers[1].1.replicate(9, 1, &bed.nodes[1]).await, Status::OK);
        let mut client = bed.client(2).await;
        show(&mut client, 9, ticket_rights::READ).await;
        assert_eq!(client.read_ok(9, 1, 0, 12).await, b"to be copied");
        for (running, _) in servers {
            running.stop().await;
        }
    });
}
