// SPDX-License-Identifier: GPL-2.0
/*
 * Parameters of the module, with the names, meanings and defaults of xen-blkback's (but for
 * the last four, which that does not have). They are here because the kernel's Rust parameters do
 * not appear in sysfs.
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

bool xbr_feature_persistent = true;
module_param_named(feature_persistent, xbr_feature_persistent, bool, 0644);
MODULE_PARM_DESC(feature_persistent, "Offer persistent grants to frontends that connect");

unsigned int xbr_max_buffer_pages = 1024;
module_param_named(max_buffer_pages, xbr_max_buffer_pages, uint, 0644);
MODULE_PARM_DESC(max_buffer_pages, "Most free pages that a ring keeps to map grants into");

unsigned int xbr_max_persistent_grants = 1056;
module_param_named(max_persistent_grants, xbr_max_persistent_grants, uint, 0644);
MODULE_PARM_DESC(max_persistent_grants, "Most persistent grants that a ring keeps mapped");

unsigned int xbr_persistent_grant_unused_seconds = 60;
module_param_named(persistent_grant_unused_seconds,
		   xbr_persistent_grant_unused_seconds, uint, 0644);
MODULE_PARM_DESC(persistent_grant_unused_seconds,
		 "Time in seconds after which an unused persistent grant is returned; 0 means never");

unsigned int xbr_max_mapped_pages = 229376;
module_param_named(max_mapped_pages, xbr_max_mapped_pages, uint, 0644);
MODULE_PARM_DESC(max_mapped_pages, "Most pages of all guests that are mapped at a time");

unsigned int xbr_max_guest_mapped_pages = 32768;
module_param_named(max_guest_mapped_pages, xbr_max_guest_mapped_pages, uint, 0644);
MODULE_PARM_DESC(max_guest_mapped_pages, "Most pages of one guest that are mapped at a time");

bool xbr_moderate_events = true;
module_param_named(moderate_events, xbr_moderate_events, bool, 0644);
MODULE_PARM_DESC(moderate_events,
		 "Hold answers back for a moment while a busy frontend has other requests to work on");

bool xbr_keep_script;
module_param_named(keep_script, xbr_keep_script, bool, 0644);
MODULE_PARM_DESC(keep_script,
		 "Leave it to the stock script to make a loop device of a file, as a mere handle of it");
