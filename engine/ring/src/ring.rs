//! The handle, and the start of a ring.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::arena::{Block, Pool};
use crate::channel;
use crate::core::Core;
use crate::driver::Driver;
use crate::features::Features;
use crate::join::JoinHandle;
use crate::remote::Remote;
use crate::sys::calls::{self, Doorbell};
use crate::sys::epoll::Epoll;
use crate::sys::uring::Uring;
use crate::time::{Instant, Sleep, TimedOut};

/// Which driver a ring runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverChoice {
    /// io_uring if the kernel allows it, else epoll and threads.
    #[default]
    Auto,
    Uring,
    Epoll,
}

impl fmt::Display for DriverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DriverChoice::Auto => "auto",
            DriverChoice::Uring => "uring",
            DriverChoice::Epoll => "epoll",
        })
    }
}

impl FromStr for DriverChoice {
    type Err = io::Error;

    fn from_str(name: &str) -> io::Result<DriverChoice> {
        match name.to_ascii_lowercase().as_str() {
            "auto" => Ok(DriverChoice::Auto),
            "uring" => Ok(DriverChoice::Uring),
            "epoll" => Ok(DriverChoice::Epoll),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("driver {name:?}: must be auto, uring or epoll"),
            )),
        }
    }
}

/// How a ring is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub driver: DriverChoice,
    /// Operations that are handed to the kernel at a time (8 to 4096).
    pub entries: u32,
    /// Slots of the buffer pool: 4 KiB + 64 KiB each.
    pub buffers: usize,
    /// Bind this thread to a core.
    pub pin_to_core: Option<usize>,
    /// What of the kernel's ring is used.
    pub features: Features,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            driver: DriverChoice::Auto,
            entries: 256,
            buffers: 256,
            pin_to_core: None,
            features: Features::default(),
        }
    }
}

/// Runs `main` on this thread until its future ends; tasks that are left are dropped then.
///
/// Errors: the driver cannot be set up. With `DriverChoice::Auto` that is rare: epoll works everywhere.
pub fn run<F, Fut, T>(options: Options, main: F) -> io::Result<T>
where
    F: FnOnce(Ring) -> Fut,
    Fut: Future<Output = T>,
{
    if let Some(core) = options.pin_to_core
        && let Err(error) = calls::pin_to_core(core)
    {
        tracing::warn!(core, %error, "cannot bind this thread to a core");
    }
    let remote = Remote::new(Some(Doorbell::new()?));
    let pool = Pool::new(options.buffers)?;
    let driver = choose_driver(&options, &pool, &remote)?;
    let core = Core::new(driver, remote, pool, None);
    core.options.set(options).expect("a new core");
    let ring = Ring { core: core.clone(), node: 0 };
    Ok(core.run(main(ring)))
}

fn choose_driver(options: &Options, pool: &Rc<Pool>, remote: &std::sync::Arc<Remote>) -> io::Result<Box<dyn Driver>> {
    if options.driver != DriverChoice::Epoll {
        match Uring::new(options.entries, options.features, pool.clone(), remote.clone()) {
            Ok(uring) => {
                tracing::debug!(driver = "uring", asked = %options.driver, "ring starts");
                return Ok(Box::new(uring));
            }
            Err(error) if options.driver == DriverChoice::Uring => return Err(error),
            Err(error) => tracing::info!(%error, "io_uring is not available, using epoll and threads"),
        }
    }
    tracing::debug!(driver = "epoll", asked = %options.driver, "ring starts");
    Ok(Box::new(Epoll::new(remote.clone())?))
}

/// A handle to the ring of this thread: all that a flow needs of the world. Cheap to clone.
#[derive(Clone)]
pub struct Ring {
    pub(crate) core: Rc<Core>,
    /// The node of a simulated world; 0 on the real drivers.
    pub(crate) node: u32,
}

impl Ring {
    /// What this ring was made of, for more rings like it; None in the simulation.
    pub fn options(&self) -> Option<Options> {
        self.core.options.get().cloned()
    }

    /// `uring`, `epoll` or `sim`.
    pub fn driver_name(&self) -> &'static str {
        self.core.driver_name
    }

    /// Starts a task. Dropping the handle lets it run on by itself.
    pub fn spawn<F: Future + 'static>(&self, future: F) -> JoinHandle<F::Output> {
        JoinHandle::spawn(self, future)
    }

    /// Now, in monotonic time.
    pub fn now(&self) -> Instant {
        self.core.now()
    }

    /// Seconds since 1970, for times that the protocol has in 32 bits.
    pub fn wall_seconds(&self) -> u32 {
        u32::try_from(self.wall_micros() / 1_000_000).unwrap_or(u32::MAX)
    }

    /// Now, in microseconds of Unix time.
    pub fn wall_micros(&self) -> u64 {
        self.wall_nanos() / 1000
    }

    /// Now, in nanoseconds of Unix time; as fine as the system has it.
    pub fn wall_nanos(&self) -> u64 {
        match &self.core.sim {
            Some(world) => world.borrow().wall_micros(self.node).saturating_mul(1000),
            None => {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
            }
        }
    }

    /// A random number, good enough for secrets on the real drivers.
    pub fn random_u64(&self) -> u64 {
        self.core.random_u64()
    }

    /// Waits for a time; a millisecond more or less.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Waits for a point in time.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep::new(self.core.clone(), deadline)
    }

    /// The result of `future` if it ends within `duration`; else the future is dropped.
    pub async fn timeout<F: Future>(&self, duration: Duration, future: F) -> Result<F::Output, TimedOut> {
        let mut future = std::pin::pin!(future);
        let mut sleep = self.sleep(duration);
        poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            Pin::new(&mut sleep).poll(context).map(|()| Err(TimedOut))
        })
        .await
    }

    /// Lets other tasks and the driver have a turn.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|context: &mut Context<'_>| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Runs a call that blocks on another thread (in place in the simulation). Dropped early, the call runs on.
    pub async fn run_blocking<T: Send + 'static>(&self, call: impl FnOnce() -> T + Send + 'static) -> T {
        if self.core.sim.is_some() {
            return call();
        }
        let (sender, mut receiver) = channel::channel();
        self.core.call(Box::new(move || drop(sender.send(call()))));
        receiver.recv().await.expect("a blocking call panicked; its thread has said why")
    }

    /// A slot of the buffer pool, if one is free.
    pub fn buffer(&self) -> Option<Block> {
        self.core.pool.take()
    }

    /// Waits for a slot of the buffer pool, first come, first served.
    pub async fn wait_buffer(&self) -> Block {
        self.core.pool.wait().await
    }

    /// Slots of the buffer pool that are free.
    pub fn free_buffers(&self) -> usize {
        self.core.pool.free_slots()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({}, node {})", self.driver_name(), self.node)
    }
}
