/* SPDX-License-Identifier: GPL-2.0 */
#ifndef PARAMS_H
#define PARAMS_H

extern unsigned int xbr_max_queues;
extern unsigned int xbr_max_ring_page_order;

#endif /* PARAMS_H */
