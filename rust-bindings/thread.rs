// SPDX-License-Identifier: GPL-2.0

//! Kernel threads that sleep until there is something to do.
//!
//! C header: [`include/linux/kthread.h`](srctree/include/linux/kthread.h)

use core::{
    ffi::c_void,
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full, //
        },
        Arc, //
    },
    types::ForeignOwnable, //
};

use crate::{
    mem,
    raw, //
};

/// Waits until every interrupt handler that runs now, and every section under RCU's read lock, on any processor,
/// has ended. May sleep.
pub fn wait_for_interrupts() {
    // SAFETY: No requirement but a context that may sleep, which the documentation demands. Code with interrupts
    // or softirqs disabled is a reader of RCU.
    unsafe { raw::synchronize_rcu() }
}

/// Waits until every task that was preempted has gone on and slept by itself. May sleep, for seconds.
pub fn wait_for_tasks() {
    // SAFETY: No requirement but a context that may sleep, which the documentation demands.
    unsafe { raw::synchronize_rcu_tasks() }
}

/// Something that a thread does whenever it is woken.
pub trait Worker: Send + Sync + 'static {
    /// The flag by which the thread is woken.
    fn wanted(&self) -> &Wanted;

    /// Does what there is to do, and returns after how many nanoseconds, if not woken before, it wants
    /// to be called again. Runs in the thread, with every allocation `GFP_NOIO`; may sleep.
    fn work(this: &Arc<Self>) -> Option<u64>;
}

/// A flag: the thread's work is wanted.
pub struct Wanted(Atomic<bool>);

impl Default for Wanted {
    /// It is not.
    fn default() -> Self {
        Self(Atomic::new(false))
    }
}

impl Wanted {
    /// Sets the flag. Returns `true` if it was clear. Orders what the caller did before, as seen
    /// by the thread when it finds the flag set.
    #[inline]
    fn set(&self) -> bool {
        !self.0.xchg(true, Full)
    }

    /// Clears the flag. Returns whether it was set.
    #[inline]
    fn take(&self) -> bool {
        self.0.xchg(false, Full)
    }
}

/// A thread, of an object that it holds a reference to. It lives until [`Thread::stop`], which a
/// module must not forget. It is frozen while the system is suspended, as other tasks are.
///
/// # Invariants
///
/// `task` is a thread made by [`Thread::new`], to which we hold a reference. `worker` comes from
/// [`Arc::into_foreign`]; its reference belongs to the thread if that has ever run.
pub struct Thread<T: Worker> {
    task: NonNull<raw::task_struct>,
    worker: *mut c_void,
    stopped: Atomic<bool>,
    _worker: PhantomData<Arc<T>>,
}

// SAFETY: A `task_struct` is reference counted; waking and stopping it is possible from any task.
unsafe impl<T: Worker> Send for Thread<T> {}
// SAFETY: As above.
unsafe impl<T: Worker> Sync for Thread<T> {}

impl<T: Worker> Thread<T> {
    /// Makes a thread for `worker`, which runs for the first time when it is woken. Its name is cut
    /// off after 15 bytes. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR` if the calling process is being killed.
    pub fn new(worker: Arc<T>, name: &CStr) -> Result<Self> {
        let worker = worker.into_foreign();
        // SAFETY: The function takes a `T` as it is given here; the format takes exactly one string.
        let task = from_err_ptr(unsafe {
            raw::kthread_create_on_node(
                Some(Self::run),
                worker.cast(),
                raw::NUMA_NO_NODE,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        });
        match task {
            Ok(task) => {
                // SAFETY: The thread is valid, as it has not been stopped.
                unsafe { raw::get_task_struct(task) };
                // INVARIANT: A new thread; the reference was taken just now.
                Ok(Self {
                    task: NonNull::new(task).ok_or(ENOMEM)?,
                    worker: worker.cast(),
                    stopped: Atomic::new(false),
                    _worker: PhantomData,
                })
            }
            Err(err) => {
                // SAFETY: No thread has got the reference.
                drop(unsafe { Arc::<T>::from_foreign(worker) });
                Err(err)
            }
        }
    }

    /// Has the thread do the work of `worker`, its own, once more. Any context.
    #[inline]
    pub fn wake(&self, worker: &T) {
        if worker.wanted().set() {
            // SAFETY: The thread is valid by the type invariant. One that has ended stays as it is.
            unsafe { raw::wake_up_process(self.task.as_ptr()) };
        }
    }

    /// Ends the thread, and waits until it has ended; the second time it does nothing. Not to be
    /// called by the thread itself, which would wait for itself. May sleep.
    pub fn stop(&self) {
        if self.stopped.xchg(true, Full) {
            return;
        }
        // SAFETY: The thread is valid, and has not been told to end before.
        let ret = unsafe { raw::kthread_stop(self.task.as_ptr()) };
        if ret != 0 {
            // SAFETY: The function returns 0; so it has never run, and never will. By the type
            // invariant the reference is ours then.
            drop(unsafe { Arc::<T>::from_foreign(self.worker.cast()) });
        }
    }

    /// # Safety
    ///
    /// Called by the thread only, with what [`Arc::into_foreign`] gave.
    unsafe extern "C" fn run(worker: *mut c_void) -> kernel::ffi::c_int {
        // SAFETY: `Self::new` left the reference to us.
        let worker = unsafe { Arc::<T>::from_foreign(worker.cast()) };
        // SAFETY: We are in a thread of our own, which holds no lock.
        unsafe { raw::set_freezable() };
        mem::with_noio(|| {
            let mut patience = None;
            while Self::wait(worker.wanted(), patience) {
                patience = T::work(&worker);
                // One that sleeps is frozen as it is.
                //
                // SAFETY: As above.
                unsafe { raw::try_to_freeze() };
            }
        });
        0
    }

    /// Sleeps until there is something to do, or for `patience` nanoseconds. Returns whether there is; if not, the
    /// thread is to end.
    fn wait(wanted: &Wanted, patience: Option<u64>) -> bool {
        loop {
            // SAFETY: The thread is in no list of waiters; whoever wakes it sets the flag before.
            unsafe { raw::set_current_state_idle() };
            let work = wanted.take();
            // SAFETY: We are in a thread made by kthread_create_on_node().
            if work || unsafe { raw::kthread_should_stop() } {
                // SAFETY: As above.
                unsafe { raw::set_current_state_running() };
                return work;
            }
            match patience {
                // SAFETY: The thread holds no lock, and may sleep.
                None => unsafe { raw::schedule() },
                Some(nanoseconds) => {
                    // SAFETY: As above. Afterwards the thread is ready to run.
                    if unsafe { raw::schedule_for(nanoseconds) } {
                        return true;
                    }
                }
            }
        }
    }
}

impl<T: Worker> Drop for Thread<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { raw::put_task_struct(self.task.as_ptr()) }
    }
}
