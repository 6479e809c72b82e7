//! Tasks, time, channels, buffers.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ring::local::Crew;
use ring::{Ring, TimedOut, channel, local};

use crate::on_both_drivers;

on_both_drivers! {
    async fn ten_thousand_tasks_all_run(ring: Ring) {
        let count = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..10_000).map(|_| {
            let (ring_, count) = (ring.clone(), count.clone());
            ring.spawn(async move {
                ring_.yield_now().await;
                count.set(count.get() + 1);
            })
        }).collect();
        let ended = join_all(tasks).await;
        assert!(ended.iter().all(|output| *output == Some(())));
        assert_eq!(count.get(), 10_000);
    }

    async fn sleeps_end_in_the_order_of_their_deadlines(ring: Ring) {
        let (sender, mut receiver) = local::channel(10);
        for millis in [30, 10, 20] {
            let (ring_, sender) = (ring.clone(), sender.clone());
            ring.spawn(async move {
                ring_.sleep(Duration::from_millis(millis)).await;
                sender.send(millis).await.unwrap();
            });
        }
        drop(sender);
        let start = Instant::now();
        for expected in [10, 20, 30] {
            assert_eq!(receiver.recv().await, Some(expected));
        }
        assert_eq!(receiver.recv().await, None);
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    async fn a_timeout_drops_what_is_too_slow(ring: Ring) {
        let slow = ring.timeout(Duration::from_millis(5), ring.sleep(Duration::from_secs(100))).await;
        assert_eq!(slow, Err(TimedOut));
        let quick = ring.timeout(Duration::from_secs(100), async { 7 }).await;
        assert_eq!(quick, Ok(7));
    }

    async fn an_aborted_task_gives_none(ring: Ring) {
        let ring_ = ring.clone();
        let dropped = Rc::new(());
        let witness = Rc::downgrade(&dropped);
        let task = ring.spawn(async move {
            ring_.sleep(Duration::from_secs(100)).await;
            drop(dropped);
        });
        ring.yield_now().await;
        task.abort();
        assert!(witness.upgrade().is_none());
        assert_eq!(task.await, None);
    }

    async fn values_from_other_threads_wake_a_sleeping_ring(ring: Ring) {
        let (sender, mut receiver) = channel::channel();
        let thread = std::thread::spawn(move || {
            for number in 0..100u32 {
                if number % 25 == 0 {
                    std::thread::sleep(Duration::from_millis(3));
                }
                sender.send(number).unwrap();
            }
        });
        for expected in 0..100 {
            assert_eq!(receiver.recv().await, Some(expected));
        }
        assert_eq!(receiver.recv().await, None);
        thread.join().unwrap();
        drop(ring);
    }

    async fn two_rings_talk(_ring: Ring) {
        let (question, mut questions) = channel::channel::<u64>();
        let (answer, mut answers) = channel::channel::<u64>();
        let thread = std::thread::spawn(move || {
            ring::run(ring::Options::default(), |_| async move {
                while let Some(number) = questions.recv().await {
                    answer.send(number * 2).unwrap();
                }
            }).unwrap();
        });
        for number in 0..1000 {
            question.send(number).unwrap();
            assert_eq!(answers.recv().await, Some(number * 2));
        }
        drop(question);
        assert_eq!(answers.recv().await, None);
        thread.join().unwrap();
    }

    async fn blocking_calls_run_elsewhere(ring: Ring) {
        let here = std::thread::current().id();
        let ids = join_all((0..40).map(|_| ring.run_blocking(|| {
            std::thread::sleep(Duration::from_millis(1));
            std::thread::current().id()
        }))).await;
        assert!(ids.iter().all(|id| *id != here));
    }

    async fn who_finds_the_pool_empty_waits_in_line(ring: Ring) {
        let mut blocks: Vec<_> = std::iter::from_fn(|| ring.buffer()).collect();
        assert_eq!(blocks.len(), 16);
        let ring_ = ring.clone();
        let waits = ring.spawn(async move { ring_.wait_buffer().await });
        let ring_ = ring.clone();
        let gives_up = ring.spawn(async move { ring_.timeout(Duration::from_millis(1), ring_.wait_buffer()).await.is_err() });
        ring.sleep(Duration::from_millis(10)).await;
        assert!(!waits.is_finished());
        assert_eq!(gives_up.await, Some(true));
        blocks.pop();
        assert!(waits.await.is_some());
        assert_eq!(ring.free_buffers(), 1);
    }

    async fn a_crew_does_every_job_and_is_as_large_as_jobs_overlap(ring: Ring) {
        let (done, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (under_way, its) = (Rc::new(Cell::new(0)), ring.clone());
        let (its_done, its_most) = (done.clone(), most.clone());
        let crew = Crew::new(&ring, move |micros: u64| {
            let (ring, done, most, under_way) = (its.clone(), its_done.clone(), its_most.clone(), under_way.clone());
            async move {
                under_way.set(under_way.get() + 1);
                most.set(under_way.get().max(most.get()));
                // The timer outlives the wait: its wake-up finds a member that has another job, or none.
                let _ = ring.timeout(Duration::from_micros(micros), ring.sleep(Duration::from_micros(100))).await;
                under_way.set(under_way.get() - 1);
                done.set(done.get() + 1);
            }
        });
        for round in 0..50 {
            for job in 0..10 {
                crew.give(50 + 10 * job);
            }
            while done.get() < 10 * (round + 1) {
                ring.sleep(Duration::from_micros(30)).await;
            }
        }
        assert!((1..=10).contains(&most.get()), "{} at a time", most.get());
        crew.give(10);
        drop(crew);
        while done.get() < 501 {
            ring.sleep(Duration::from_micros(30)).await;
        }
    }

    async fn clocks_go_forward_and_random_numbers_differ(ring: Ring) {
        let (before, wall) = (ring.now(), ring.wall_micros());
        ring.sleep(Duration::from_millis(2)).await;
        assert!(before.elapsed(&ring) >= Duration::from_millis(2));
        assert!(ring.wall_micros() > wall && wall > 1_600_000_000_000_000);
        let numbers: std::collections::BTreeSet<u64> = (0..100).map(|_| ring.random_u64()).collect();
        assert_eq!(numbers.len(), 100);
    }
}

#[test]
fn tasks_that_are_left_are_dropped_at_the_end() {
    for driver in [ring::DriverChoice::Uring, ring::DriverChoice::Epoll] {
        let left = Rc::new(());
        let witness = Rc::downgrade(&left);
        crate::on(driver, ring::Features::default(), |ring| async move {
            let ring_ = ring.clone();
            ring.spawn(async move {
                let listener = ring_.listen("127.0.0.1:0".parse().unwrap()).unwrap();
                let _ = listener.accept().await;
                drop(left);
            });
            ring.sleep(Duration::from_millis(1)).await;
        });
        assert!(witness.upgrade().is_none());
    }
}
