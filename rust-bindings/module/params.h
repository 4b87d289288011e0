/* SPDX-License-Identifier: GPL-2.0 */
#ifndef PARAMS_H
#define PARAMS_H

#include <linux/types.h>

extern unsigned int xbr_max_queues;
extern unsigned int xbr_max_ring_page_order;
extern bool xbr_feature_persistent;
extern unsigned int xbr_max_buffer_pages;
extern unsigned int xbr_max_persistent_grants;
extern unsigned int xbr_persistent_grant_unused_seconds;
extern unsigned int xbr_max_mapped_pages;
extern unsigned int xbr_max_guest_mapped_pages;
extern bool xbr_moderate_events;
extern bool xbr_keep_script;

#endif /* PARAMS_H */
