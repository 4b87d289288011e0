// SPDX-License-Identifier: GPL-2.0
/*
 * Preloaded where the nested machine is slow: makes xl's clock run slower by the factor in XB_PACE.
 *
 * libxl gives a backend ten seconds for each change of state and a script forty; neither can be
 * configured. It counts them by gettimeofday(), and when poll() returns early it looks at the clock
 * and waits again. Other programs than xl see the right time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

static double pace = 1;
static struct timespec start;

__attribute__((constructor)) static void begin(void)
{
	const char *factor = getenv("XB_PACE");

	if (!factor || strcmp(program_invocation_short_name, "xl"))
		return;
	clock_gettime(CLOCK_REALTIME, &start);
	if (atof(factor) > 1)
		pace = atof(factor);
}

int gettimeofday(struct timeval *restrict to, void *restrict zone)
{
	struct timespec now;
	double since;

	(void)zone;
	if (clock_gettime(CLOCK_REALTIME, &now))
		return -1;
	if (pace > 1) {
		since = (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
		since = since / pace + (double)start.tv_nsec / 1e9;
		now.tv_sec = start.tv_sec + (time_t)since;
		now.tv_nsec = (long)((since - (double)(time_t)since) * 1e9);
	}
	to->tv_sec = now.tv_sec;
	to->tv_usec = now.tv_nsec / 1000;
	return 0;
}
