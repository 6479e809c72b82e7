//! What the monitor asks: disks, totals, charts. Spec 70, 6 and 7.

use std::time::Duration;

use wire::*;

use crate::support::{in_sim, noise};

#[test]
fn charts_and_disks_say_what_was_done_in_the_last_minute() {
    in_sim(1, |bed| async move {
        let (running, mut master) = bed.one_server().await;
        for id in 1..=3 {
            assert_eq!(master.create(id, 1).await, Status::OK);
        }
        bed.client(1).await.write(1, 1, &[], 0, &noise(1, 100_000)).await;
        bed.client(1).await.read_ok(1, 1, 0, 100_000).await;
        bed.sleep(Duration::from_secs(62)).await;
        let mut client = bed.client(1).await;
        let chart = |chart| CltoanChartData { chart, entries_max: Some(2) };
        let created: AntoclChartData = client.ask(chart(210)).await;
        assert_eq!((created.entries, created.points[0]), (2, 3), "chart 21 counts creations");
        assert!(created.time > 0 && created.time.is_multiple_of(60));
        let written: AntoclChartData = client.ask(chart(u32::from_be_bytes(*b"DTBW"))).await;
        assert_eq!(written.points[0], 100_000);
        let _: AntoclNoChartData = client.ask(chart(1000)).await;
        let disks: CstoclHddList = client.ask(CltocsHddList {}).await;
        let stats = &disks.disks[0].stats;
        assert_eq!([0, 1, 2].map(|at: usize| (stats[at].wbytes, stats[at].wops)), [(100_000, 2); 3]);
        let totals: AntoclMonotonicData = client.ask(CltoanMonotonicData {}).await;
        assert_eq!((totals.counters.0.len(), totals.counters.0[21]), (34, 3));
        let disks = totals.disks.0.unwrap();
        assert_eq!((disks.len(), disks[0].chunks, disks[0].stats.wbytes), (1, 3, 100_000));
        let picture: AntoclChart = client.ask(CltoanChart { chart: 210, size: None }).await;
        assert!(picture.picture.0.starts_with(b"\x89PNG"));

        bed.sleep(Duration::from_secs(60)).await;
        let mut client = bed.client(1).await;
        let disks: CstoclHddList = client.ask(CltocsHddList {}).await;
        assert_eq!(disks.disks[0].stats[0].wops, 0, "the last minute was quiet");
        assert_eq!(disks.disks[0].stats[1].wops, 2, "the hour was not");
        drop(client);
        running.stop().await;

        let listener = crate::support::master::Master::listen(&bed.nodes[0]);
        let running = bed.start(1).await;
        crate::support::master::Master::accept(&bed.nodes[0].ring, &listener).await;
        let created: AntoclChartData =
            bed.client(1).await.ask(CltoanChartData { chart: 210, entries_max: Some(9) }).await;
        assert!(created.points.contains(&3), "charts outlive a restart: {:?}", created.points);
        running.stop().await;
    });
}
