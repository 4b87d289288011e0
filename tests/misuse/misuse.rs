// SPDX-License-Identifier: GPL-2.0

//! What safe code must not be able to do with `rust-bindings/`. It is compiled, with the command line of the
//! module, and never run: each line marked with an error gets that one, no other line gets any, and without the
//! marked lines all compiles. `scripts/xb/checks.py` does that.

#![forbid(unsafe_code)]
#![allow(missing_docs, unreachable_code, unreachable_pub, unused)]

use kernel::{
    impl_has_delayed_work,
    prelude::*,
    sync::{Arc, Mutex},
    workqueue::{DelayedWork, Queue, WorkItem},
};
use xen_bindings::{
    grants::{
        stage::Builder,
        Grants, //
    },
    request::{
        list::{
            DoneList,
            List, //
        },
        memory::Memory,
        Direction,
        Done,
        Joined,
        Mapped,
        Mode,
        Owner,
        Retry,
        Staged, //
    },
    storage::{
        bdev::{
            BlockDevice,
            OnDevice, //
        },
        file::{
            File,
            OnFile, //
        }, //
    },
    work::{
        enqueue_delayed,
        OnQueue,
        OwnedQueue, //
    },
    xen::evtchn::{
        EventChannel,
        Handler, //
    }, //
};

/// A driver's data that keep a device open, which somebody else can close.
struct Data {
    device: Arc<Mutex<Option<BlockDevice>>>,
    file: Arc<File>,
}

impl OnDevice for Data {
    fn device(&self) -> Option<&BlockDevice> {
        return self.device.lock().as_ref(); //~ E0515
        None
    }
}

impl OnFile for Data {
    fn file(&self) -> Option<&File> {
        let file = self.file.clone();
        return Some(&file); //~ E0515
        Some(&self.file)
    }
}

impl Owner for Data {
    fn complete(done: Done<Self>) {}
    fn retry(io: Joined<Self>, why: Retry) {}
    fn run(io: Joined<Self>) {}
}

fn submitted_twice(device: &BlockDevice, io: Mapped<Data>) {
    device.submit(io, 0);
    device.submit(io, 0); //~ E0382
}

fn looked_at_in_flight(file: &File, mut io: Joined<Data>, mode: Mode) {
    file.submit(io, 0, mode);
    io.data_mut(); //~ E0382
}

fn answered_in_flight(device: &BlockDevice, io: Mapped<Data>) {
    device.flush(io, 0);
    io.done(Ok(())); //~ E0382
}

fn deferred_twice(queue: &OwnedQueue, io: Joined<Data>) {
    io.defer(queue);
    io.defer(queue); //~ E0382
}

fn joined_and_used(first: &mut Joined<Data>, next: Mapped<Data>) {
    let _ = first.join(next);
    next.done(Ok(())); //~ E0382
}

fn submitted_unmapped(device: &BlockDevice, io: Staged<Data>) {
    device.submit(io, 0); //~ E0308
}

fn answered_before_it_is_done(list: &DoneList<Data>, io: Mapped<Data>) {
    list.push(io); //~ E0308
}

fn unmapped_before_it_is_done(grants: &mut Grants, staged: &mut List<Staged<Data>>) {
    grants.unmap(staged, staged, |_| {}); //~ E0308
}

fn built_later(grants: &mut Grants, memory: Memory<Data>, data: Data) {
    let mut later: Option<&mut Builder<'_, Data>> = None;
    let _ = Staged::new(memory, data, Direction::Read, grants, |builder| {
        later = Some(builder); //~ E0521
        Ok::<(), Error>(())
    });
}

/// Something whose delayed work item does not keep the workqueue.
#[pin_data]
struct Loose {
    #[pin]
    work: DelayedWork<Loose>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Loose { self.work }
}

impl WorkItem for Loose {
    type Pointer = Arc<Loose>;

    fn run(this: Arc<Loose>) {}
}

fn queued_without_a_queue(item: Arc<Loose>) {
    let _ = enqueue_delayed::<Loose, 0>(item, 1); //~ E0277
}

fn delayed_on_any_queue(queue: &OwnedQueue, item: Arc<Loose>) {
    let _ = queue.enqueue_delayed::<Arc<Loose>, 0>(item, 1); //~ E0599
}

fn passed_as_a_queue(queue: &OwnedQueue) {
    let queue: &Queue = queue; //~ E0308
}

/// Something that keeps a workqueue which can be taken away from it.
struct Borrower(Mutex<Option<OwnedQueue>>, OwnedQueue);

impl OnQueue for Borrower {
    fn queue(&self) -> &OwnedQueue {
        return self.0.lock().as_ref().unwrap_or(&self.1); //~ E0515
        &self.1
    }
}

fn acknowledged_when_unbound<T: Handler>(channel: EventChannel<T>) {
    drop(channel);
    channel.eoi(false); //~ E0382
}

fn told_when_unbound<T: Handler>(channel: EventChannel<T>) {
    drop(channel);
    channel.notify(); //~ E0382
}

fn copied<T: Handler>(channel: &EventChannel<T>) {
    let copy: EventChannel<T> = channel.clone(); //~ E0308
}
