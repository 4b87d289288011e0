/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Input of bindgen: the C headers that rust-bindings/ abstracts, the constants that are no
 * plain integers in C, and the helpers.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/device.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/llist.h>
#include <linux/magic.h>
#include <linux/sched/clock.h>
#include <linux/stat.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include <xen/events.h>
#include <xen/grant_table.h>
#include <xen/interface/grant_table.h>
#include <xen/xenbus.h>

const gfp_t RUST_CONST_HELPER_GFP_NOIO = GFP_NOIO;
const blk_mode_t RUST_CONST_HELPER_BLK_OPEN_READ = BLK_OPEN_READ;
const blk_mode_t RUST_CONST_HELPER_BLK_OPEN_WRITE = BLK_OPEN_WRITE;
const blk_opf_t RUST_CONST_HELPER_REQ_PREFLUSH = REQ_PREFLUSH;
const blk_opf_t RUST_CONST_HELPER_REQ_FUA = REQ_FUA;
const blk_opf_t RUST_CONST_HELPER_REQ_SYNC = REQ_SYNC;
const blk_opf_t RUST_CONST_HELPER_REQ_IDLE = REQ_IDLE;
const u32 RUST_CONST_HELPER_REQ_OP_READ = REQ_OP_READ;
const u32 RUST_CONST_HELPER_REQ_OP_WRITE = REQ_OP_WRITE;
const int RUST_CONST_HELPER_FALLOC_PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const int RUST_CONST_HELPER_IOCB_DIRECT = IOCB_DIRECT;
const int RUST_CONST_HELPER_IOCB_NOWAIT = IOCB_NOWAIT;
const int RUST_CONST_HELPER_IOCB_DSYNC = IOCB_DSYNC;
const int RUST_CONST_HELPER_IOCB_APPEND = IOCB_APPEND;
const fmode_t RUST_CONST_HELPER_FMODE_NOWAIT = FMODE_NOWAIT;
const fmode_t RUST_CONST_HELPER_FMODE_CAN_ODIRECT = FMODE_CAN_ODIRECT;
const u32 RUST_CONST_HELPER_STATX_DIOALIGN = STATX_DIOALIGN;
const u32 RUST_CONST_HELPER_STATX_INO = STATX_INO;
const u64 RUST_CONST_HELPER_TMPFS_MAGIC = TMPFS_MAGIC;
const u32 RUST_CONST_HELPER_ITER_DEST = ITER_DEST;
const u32 RUST_CONST_HELPER_ITER_SOURCE = ITER_SOURCE;
const u32 RUST_CONST_HELPER_GNTMAP_HOST_MAP = GNTMAP_host_map;
const u32 RUST_CONST_HELPER_GNTMAP_READONLY = GNTMAP_readonly;
const u32 RUST_CONST_HELPER_WQ_DISK = WQ_UNBOUND | WQ_MEM_RECLAIM;

#include "module/params.h"
#include "module/tracepoints.h"
#include "helpers.c"
