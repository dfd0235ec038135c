//! A thread pool that lives as long as the engine.
//!
//! A GEMM at M = 1 takes tens of microseconds, the time it takes to start a thread. Workers therefore
//! wait for the next job by spinning for a moment and sleep after that. The caller works too, and never
//! waits for a worker that has not picked up the job: on a busy machine a late worker costs nothing.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker spins before it sleeps: longer than the gap between two GEMMs of a layer
/// (normalisation and quantisation, measured at 5 to 20 us), far shorter than the gap between requests.
const SPIN: Duration = Duration::from_micros(40);

/// A job: called once for each task index, with the number of the worker that runs it.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}

// SAFETY: the pointee is Sync, and `Pool::run` keeps it alive until no worker holds the job.
unsafe impl Send for Job {}

struct Slot {
    job: Option<Job>,
    inside: usize,
    panic: Option<Box<dyn Any + Send>>,
    closing: bool,
}

struct Shared {
    /// Number of the latest job; spinning workers watch it.
    epoch: AtomicU64,
    /// Next task index to claim.
    next: AtomicUsize,
    slot: Mutex<Slot>,
    arrived: Condvar,
    left: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        // A panicking task is caught before the lock is taken again; a poisoned slot is still whole.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Long-lived threads that share the tasks of one job at a time with the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` workers, counting the caller; at least one.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            slot: Mutex::new(Slot {
                job: None,
                inside: 0,
                panic: None,
                closing: false,
            }),
            arrived: Condvar::new(),
            left: Condvar::new(),
        });
        let mut pool = Self {
            shared,
            handles: Vec::new(),
            turn: Mutex::new(()),
        };
        for worker in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("gemm-{worker}"))
                .spawn(move || work(&shared, worker))?;
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// Workers, counting the caller.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `task(index, worker)` for every index below `tasks`, each exactly once, and returns when
    /// all calls have returned. With `alone` the caller runs them all. A panic of a task is passed on.
    pub fn run(&self, tasks: usize, alone: bool, task: &Task<'_>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if alone || tasks < 2 || self.handles.is_empty() {
            (0..tasks).for_each(|index| task(index, 0));
            return;
        }
        let shared = &*self.shared;
        #[expect(
            clippy::transmute_ptr_to_ptr,
            reason = "a cast may not extend the lifetime of a dyn"
        )]
        // SAFETY: only the lifetime changes. Workers reach the pointer through the slot; before this
        // function returns or unwinds, the job is taken out of the slot under the lock and `inside`
        // has gone back to zero, so no worker holds it any more.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        let job = Job { task, tasks };
        {
            let mut slot = shared.lock();
            shared.next.store(0, Ordering::Relaxed);
            slot.job = Some(job);
            shared.epoch.fetch_add(1, Ordering::Release);
        }
        shared.arrived.notify_all();
        let mine = catch_unwind(AssertUnwindSafe(|| claim(shared, job, 0)));
        let mut slot = shared.lock();
        slot.job = None;
        // A worker in the middle of its last task needs microseconds; sleeping would cost more.
        let started = Instant::now();
        while slot.inside > 0 {
            if started.elapsed() < SPIN {
                drop(slot);
                std::hint::spin_loop();
                slot = shared.lock();
            } else {
                slot = shared
                    .left
                    .wait(slot)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        let theirs = slot.panic.take();
        drop(slot);
        if let Err(payload) = mine {
            resume_unwind(payload);
        }
        if let Some(payload) = theirs {
            resume_unwind(payload);
        }
    }
}

impl Pool {
    /// Cuts `values` into pieces of `size` elements (the last may be shorter) and calls
    /// `task(index, piece)` for each, shared among the workers.
    pub fn run_pieces<T: Send>(
        &self,
        values: &mut [T],
        size: usize,
        task: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        let pieces: Vec<Mutex<&mut [T]>> = values.chunks_mut(size).map(Mutex::new).collect();
        self.run(pieces.len(), false, &|index, _| {
            // Each index is claimed once, so the lock is free.
            task(
                index,
                &mut pieces[index].lock().unwrap_or_else(PoisonError::into_inner),
            );
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.arrived.notify_all();
        for handle in self.handles.drain(..) {
            // A worker catches every panic of a task, so joining cannot fail in a way that matters.
            let _ = handle.join();
        }
    }
}

fn claim(shared: &Shared, job: Job, worker: usize) {
    loop {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= job.tasks {
            return;
        }
        // SAFETY: the job is in the slot or counted in `inside`, so `Pool::run` has not returned and
        // its borrow of the closure is alive.
        unsafe { (*job.task)(index, worker) };
    }
}

fn work(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        let idle = Instant::now();
        while shared.epoch.load(Ordering::Acquire) == seen && idle.elapsed() < SPIN {
            std::hint::spin_loop();
        }
        let mut slot = shared.lock();
        while shared.epoch.load(Ordering::Acquire) == seen && !slot.closing {
            slot = shared
                .arrived
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if slot.closing {
            return;
        }
        seen = shared.epoch.load(Ordering::Acquire);
        let Some(job) = slot.job else { continue };
        slot.inside += 1;
        drop(slot);
        let outcome = catch_unwind(AssertUnwindSafe(|| claim(shared, job, worker)));
        let mut slot = shared.lock();
        slot.inside -= 1;
        if let Err(payload) = outcome {
            slot.panic.get_or_insert(payload);
        }
        drop(slot);
        shared.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_however_many_jobs_follow_each_other() {
        let pool = Pool::new(3).unwrap();
        for round in 0..2000usize {
            let tasks = round % 17;
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, round % 5 == 0, &|index, worker| {
                assert!(worker < 3);
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                counts
                    .iter()
                    .all(|count| count.load(Ordering::Relaxed) == 1)
            );
        }
    }

    #[test]
    fn pieces_cover_every_element_once() {
        let pool = Pool::new(2).unwrap();
        let mut values = vec![0usize; 103];
        pool.run_pieces(&mut values, 10, &|index, piece| {
            for value in piece {
                *value += index + 1;
            }
        });
        assert!(values.iter().enumerate().all(|(at, v)| *v == at / 10 + 1));
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_still_works() {
        let pool = Pool::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, false, &|index, _| assert!(index != 40, "task forty"));
        }));
        assert!(outcome.is_err());
        let ran = AtomicUsize::new(0);
        pool.run(64, false, &|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 64);
    }
}
