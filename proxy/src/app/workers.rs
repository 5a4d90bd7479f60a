//! The threads that carry sessions: the one seam between the data plane and the form of its runtime.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::config::{General, Runtime};
use crate::worker;

/// The threads that carry sessions.
#[derive(Clone)]
pub(crate) struct Workers {
    places: Arc<[Place]>,
    stop: CancellationToken,
}

struct Place {
    handle: Handle,
    sessions: Arc<AtomicUsize>,
}

/// One session counted on its worker, for as long as it lives.
struct Carried(Arc<AtomicUsize>);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
        Ok(Self { places: places.into(), stop })
    }

    /// Has the worker with the fewest sessions carry another one.
    pub(crate) fn place<F, S>(&self, session: S)
    where
        S: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let place = self.places.iter().min_by_key(|place| place.sessions.load(Ordering::Relaxed));
        let place = place.expect("there is at least one worker");
        place.sessions.fetch_add(1, Ordering::Relaxed);
        let carried = Carried(Arc::clone(&place.sessions));
        place.handle.spawn(async move {
            let _carried = carried;
            session().await;
        });
    }

    /// Ends the threads and whatever they still carry.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

fn per_core(reactor: usize, class_cache_size: usize, stop: CancellationToken) -> io::Result<Place> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name(format!("halyard-{reactor}")).spawn(move || {
        worker::with(|local| local.set_up(reactor, class_cache_size));
        runtime.block_on(stop.cancelled());
    })?;
    Ok(Place { handle, sessions: Arc::default() })
}

fn multi_thread(workers: usize, class_cache_size: usize, stop: CancellationToken) -> io::Result<Place> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .thread_name("halyard")
        .on_thread_start(move || worker::with(|local| local.set_up(1, class_cache_size)))
        .build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name("halyard-keeper".to_owned()).spawn(move || runtime.block_on(stop.cancelled()))?;
    Ok(Place { handle, sessions: Arc::default() })
}
