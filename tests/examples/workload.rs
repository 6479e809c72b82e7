//! Random work with a model through our client library on any running cluster, MooseFS's included:
//! `workload MASTER:PORT [SEED] [STEPS]`. Two clients work side by side, then each reads what the other has written.

use mooring_tests::workload::{Broken, Worker};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let master = arguments.first().and_then(|word| word.parse().ok()).expect("usage: workload IP:PORT [SEED] [STEPS]");
    let number = |index: usize, default| arguments.get(index).map_or(default, |word| word.parse().expect("a number"));
    let (seed, steps) = (number(1, 1), number(2, 200));
    let outcome = ring::run(ring::Options::default(), move |ring| async move {
        let mut workers = Vec::new();
        let mut clients = Vec::new();
        for index in 0..2 {
            let client = client::Client::connect(ring.clone(), client::Settings::new(master)).await.expect("it mounts");
            let name = format!("work-{seed}-{index}");
            let worker = Worker::new(ring.clone(), client.clone(), &name, seed * 2 + index, false).await;
            workers.push(worker.expect("the folder can be made"));
            clients.push(client);
        }
        let (mut second, mut first) = (workers.pop().expect("two"), workers.pop().expect("two"));
        let both = [
            ring.spawn(async move {
                let outcome = work(&mut first, steps).await;
                (outcome, first)
            }),
            ring.spawn(async move {
                let outcome = work(&mut second, steps).await;
                (outcome, second)
            }),
        ];
        for (index, task) in both.into_iter().enumerate() {
            let (outcome, mut worker) = task.await.expect("nobody aborts it");
            outcome?;
            worker.audit(&clients[1 - index]).await?;
            println!("{:?}", worker.counts());
        }
        for client in clients {
            client.close().await;
        }
        Ok::<(), Broken>(())
    });
    if let Err(Broken(sentence)) = outcome.expect("the runtime starts") {
        eprintln!("seed {seed}: {sentence}");
        std::process::exit(1);
    }
}

async fn work(worker: &mut Worker, steps: u64) -> Result<(), Broken> {
    for _ in 0..steps {
        worker.step().await?;
    }
    Ok(())
}
