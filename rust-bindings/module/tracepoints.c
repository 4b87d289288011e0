// SPDX-License-Identifier: GPL-2.0
/*
 * What the tracepoints consist of.
 */
#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "tracepoints.h"
