//! The threads that carry sessions: the one seam between the data plane and the form of its runtime.
//!
//! A thread that has much to do costs less for each statement than two that have little: it is woken less often.
//! So one thread is filled before the next is used ([`Workers::place`]), and a thread that comes to its limit
//! sheds sessions to another ([`Workers::balance`]). `docs/adr/0002-threads-and-pools.md` has the figures.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use crate::config::{General, Runtime};
use crate::worker;

/// Between two looks of a thread at its own CPU time.
const LOOK: Duration = Duration::from_millis(250);
/// Looks after which a thread lets go of the statements it met: those that nobody else holds are forgotten.
const FORGETTING_LOOKS: u32 = 240;
/// A thread that spends this share of its time on the CPU (in thousandths) takes no more new sessions while
/// another has less to do.
const FILLED: u32 = 600;
/// A thread that spends this share on the CPU sheds sessions.
const OVERFULL: u32 = 800;

/// The threads that carry sessions.
#[derive(Clone)]
pub(crate) struct Workers {
    places: Arc<[Arc<Place>]>,
    stop: CancellationToken,
}

/// One thread (or, in the work-stealing form, all of them).
pub(crate) struct Place {
    handle: Handle,
    sessions: AtomicUsize,
    /// Thousandths of its time spent on the CPU, averaged over the last looks.
    busy: AtomicU32,
    /// Sessions that are to leave for another thread.
    shedding: AtomicUsize,
}

/// A session that goes from thread to thread, one leg at a time.
type Leg = Pin<Box<dyn Future<Output = Option<NextLeg>> + Send>>;
/// What goes on on another thread.
pub(crate) struct NextLeg(Box<dyn FnOnce(Arc<Place>) -> Leg + Send>);

impl NextLeg {
    /// What goes on once a thread is found for it.
    pub(crate) fn new<F>(leg: impl FnOnce(Arc<Place>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Option<NextLeg>> + Send + 'static,
    {
        Self(Box::new(move |place| Box::pin(leg(place))))
    }
}

/// One session counted on its thread, for as long as it lives there.
struct Carried(Arc<Place>);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    /// Whether the session that asks, having nothing in flight, is to go on elsewhere.
    #[inline]
    pub(crate) fn sheds(&self) -> bool {
        self.shedding.load(Ordering::Relaxed) > 0
            && self
                .shedding
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
    }

    fn new(handle: Handle) -> Arc<Self> {
        Arc::new(Self {
            handle,
            sessions: AtomicUsize::new(0),
            busy: AtomicU32::new(0),
            shedding: AtomicUsize::new(0),
        })
    }
}

impl Workers {
    /// Starts the threads.
    pub(crate) fn start(general: &General, class_cache_size: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let places = match general.runtime {
            Runtime::PerCore => (1..=general.workers)
                .map(|reactor| per_core(reactor, class_cache_size, stop.clone()))
                .collect::<io::Result<Vec<_>>>()?,
            Runtime::MultiThread => vec![multi_thread(general.workers, class_cache_size, stop.clone())?],
        };
        Ok(Self {
            places: places.into(),
            stop,
        })
    }

    /// Has a thread carry another session: the first that is not full, or the one with the least to do.
    pub(crate) fn place(&self, leg: NextLeg) {
        let busy = |place: &&Arc<Place>| place.busy.load(Ordering::Relaxed);
        let place = self
            .places
            .iter()
            .find(|place| busy(place) < FILLED)
            .or_else(|| self.places.iter().min_by_key(busy))
            .expect("there is at least one thread");
        self.carry(Arc::clone(place), leg);
    }

    fn carry(&self, place: Arc<Place>, leg: NextLeg) {
        place.sessions.fetch_add(1, Ordering::Relaxed);
        let carried = Carried(Arc::clone(&place));
        let workers = self.clone();
        let handle = place.handle.clone();
        handle.spawn(async move {
            let next = leg.0(place).await;
            drop(carried);
            if let Some(next) = next {
                workers.place(next);
            }
        });
    }

    /// Has overfull threads shed sessions while another has room. Called now and then.
    pub(crate) fn balance(&self) {
        let least = self
            .places
            .iter()
            .map(|place| place.busy.load(Ordering::Relaxed))
            .min()
            .unwrap_or(0);
        for place in self.places.iter() {
            let busy = place.busy.load(Ordering::Relaxed);
            let excess = if busy > OVERFULL && least < FILLED {
                // Half of the difference, so that two threads do not exchange places.
                let share = (busy - least) / 2;
                place.sessions.load(Ordering::Relaxed) * share as usize / busy as usize
            } else {
                0
            };
            place.shedding.store(excess, Ordering::Relaxed);
        }
    }

    /// Ends the threads and whatever they still carry.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

fn per_core(reactor: usize, class_cache_size: usize, stop: CancellationToken) -> io::Result<Arc<Place>> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let place = Place::new(runtime.handle().clone());
    let watched = Arc::clone(&place);
    thread::Builder::new()
        .name(format!("halyard-{reactor}"))
        .spawn(move || {
            worker::with(|local| local.set_up(reactor, class_cache_size));
            runtime.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = watch(&watched) => {}
                }
            });
        })?;
    Ok(place)
}

/// Notes, again and again, how much of its time this thread spends on the CPU.
async fn watch(place: &Place) {
    let mut looks = interval(LOOK);
    let mut last = (Instant::now(), cpu_time());
    for look in 1_u32.. {
        looks.tick().await;
        if look.is_multiple_of(FORGETTING_LOOKS) {
            worker::with(|local| local.statements.forget());
        }
        let now = (Instant::now(), cpu_time());
        let elapsed = (now.0 - last.0).as_micros().max(1);
        let spent = now.1.saturating_sub(last.1).as_micros();
        let share = u32::try_from(spent * 1000 / elapsed).unwrap_or(1000);
        let before = place.busy.load(Ordering::Relaxed);
        place.busy.store(before.midpoint(share), Ordering::Relaxed);
        last = now;
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn multi_thread(workers: usize, class_cache_size: usize, stop: CancellationToken) -> io::Result<Arc<Place>> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_io()
        .enable_time()
        .thread_name("halyard")
        .on_thread_start(move || worker::with(|local| local.set_up(1, class_cache_size)))
        .build()?;
    let place = Place::new(runtime.handle().clone());
    thread::Builder::new()
        .name("halyard-keeper".to_owned())
        .spawn(move || runtime.block_on(stop.cancelled()))?;
    Ok(place)
}
