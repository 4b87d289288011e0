"""What requests need is asked for so that it may fail, where the driver can do without, and without waiting for I/O.

Where nothing but I/O could bring memory, the allocator goes on trying for ever unless it is told not to: what is held
back for a shortage would never be used. And a disk of dom0 itself would wait for itself."""

import re
from collections import Counter

from lib import tracing
from lib.basics import check, log, sh
from lib.env import Env
from lib.tracing import TRACING

BACKENDS = ("rs",)
TIMEOUT = 240
ESTIMATE = 40
EVENTS = ("kmalloc", "kmem_cache_alloc", "mm_page_alloc")
# Large requests, some that are copied, and persistent grants: each asks for memory of its own.
LOADS = ("--depth 32 --size 1024", "--depth 64 --size 4 --ring-order 1", "--depth 32 --size 64 --persistent")
PLACES = 4  # at which the driver asks for memory while it takes requests, at least
GIVES_UP = {"__GFP_NORETRY", "GFP_NOWAIT", "GFP_ATOMIC"}
DOES_IO = {"GFP_KERNEL", "GFP_KERNEL_ACCOUNT", "GFP_USER", "GFP_NOFS", "GFP_HIGHUSER", "__GFP_IO"}
# In their line memory is asked for by one of our functions, and with these flags.
CALL = re.compile(r"call_site=(\S+)\+\S+ \[xen_blkback_rs\] .*gfp_flags=(\S+)")
PAGE = re.compile(r": mm_page_alloc: .*gfp_flags=(\S+)")


def run(env: Env) -> None:
    guest = env.guest(
        env.disk(env.file("ext4", "disk", 16 << 20), "xvda"), env.disk(env.device(16), "xvdb"), frontend=True
    )
    events = " ".join(EVENTS)
    tracing.mount()
    env.at_end(
        f"cd {TRACING}; for event in {events}; do echo 0 >events/kmem/$event/filter; done; echo 1408 >buffer_size_kb"
    )
    # The rings' threads have the name of their device, such as 1-51712.0.
    sh(
        f"cd {TRACING}; echo 8192 >buffer_size_kb; for event in {events}; do echo 'comm ~ \"*-517*\"'"
        " >events/kmem/$event/filter; done"
    )
    with tracing.traced(*(f"kmem/{event}" for event in EVENTS)) as trace:
        for vdev in ("xvda", "xvdb"):
            for load in LOADS:
                guest.sh(f"blkif-frontend load {load} --vdev {vdev} --area 8 --seconds 1")
    guest.shutdown()

    ours = Counter(CALL.findall(trace.text))
    pages = Counter(PAGE.findall(trace.text))
    for (function, flags), count in ours.items():
        log(f"{count} times {flags}: {function}")
    log(f"pages: {dict(pages)}")
    check(
        len({function for function, _ in ours}) >= PLACES, f"the driver has asked for memory in {len(ours)} places only"
    )
    stubborn = [(function, flags) for function, flags in ours if not GIVES_UP & set(flags.split("|"))]
    check(not stubborn, f"asks for memory until it gets some: {stubborn}")
    check(pages, "no request has needed a page")
    # Whatever a file system and the block layer ask for on our behalf, too.
    slow = [flags for flags in pages if DOES_IO & set(flags.split("|"))]
    check(not slow, f"asks for pages in a way that may wait for I/O: {slow}")
