/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of a request: taken from the ring, and answered.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM xen_blkback_rs

#if !defined(_XEN_BLKBACK_RS_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _XEN_BLKBACK_RS_TRACE_H

#include <linux/tracepoint.h>

TRACE_EVENT(xen_blkback_rs_start,
	    TP_PROTO(const char *disk, unsigned int ring, u64 id, u8 operation, u64 sector,
		     u32 bytes),
	    TP_ARGS(disk, ring, id, operation, sector, bytes),
	    TP_STRUCT__entry(__string(disk, disk)
			     __field(unsigned int, ring)
			     __field(u64, id)
			     __field(u64, sector)
			     __field(u32, bytes)
			     __field(u8, operation)),
	    TP_fast_assign(__assign_str(disk);
			   __entry->ring = ring;
			   __entry->id = id;
			   __entry->sector = sector;
			   __entry->bytes = bytes;
			   __entry->operation = operation;),
	    TP_printk("%s ring=%u id=%llu operation=%u sector=%llu bytes=%u",
		      __get_str(disk), __entry->ring, __entry->id, __entry->operation,
		      __entry->sector, __entry->bytes)
);

TRACE_EVENT(xen_blkback_rs_end,
	    TP_PROTO(const char *disk, unsigned int ring, u64 id, int error, u64 nanoseconds),
	    TP_ARGS(disk, ring, id, error, nanoseconds),
	    TP_STRUCT__entry(__string(disk, disk)
			     __field(unsigned int, ring)
			     __field(u64, id)
			     __field(u64, nanoseconds)
			     __field(int, error)),
	    TP_fast_assign(__assign_str(disk);
			   __entry->ring = ring;
			   __entry->id = id;
			   __entry->nanoseconds = nanoseconds;
			   __entry->error = error;),
	    TP_printk("%s ring=%u id=%llu error=%d nanoseconds=%llu",
		      __get_str(disk), __entry->ring, __entry->id, __entry->error,
		      __entry->nanoseconds)
);

#endif /* _XEN_BLKBACK_RS_TRACE_H */

/* This part must be outside protection */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE tracepoints
#include <trace/define_trace.h>
