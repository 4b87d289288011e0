// SPDX-License-Identifier: GPL-2.0
/*
 * Parameters of the module, with the names, meanings and defaults of xen-blkback's. They are
 * here because the kernel's Rust parameters do not appear in sysfs.
 */
#include <linux/moduleparam.h>
#include <xen/xenbus.h>

#include "params.h"

unsigned int xbr_max_queues;
module_param_named(max_queues, xbr_max_queues, uint, 0644);
MODULE_PARM_DESC(max_queues,
		 "Most queues of a disk; 0, the default, stands for the number of processors");

unsigned int xbr_max_ring_page_order = XENBUS_MAX_RING_GRANT_ORDER;
module_param_named(max_ring_page_order, xbr_max_ring_page_order, uint, 0444);
MODULE_PARM_DESC(max_ring_page_order, "Largest order of the number of pages of a ring");
