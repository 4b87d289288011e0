// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin of QEMU's emulator that counts the instructions which each piece of code executes, for
 * `make bench BENCH=--profile`. SIGRTMIN+8 starts the counting, and ends it the next time; then
 * the counts are written to the file given as out=: address in the guest, address in QEMU's own
 * memory (which tells one domain's kernel from another's), instructions.
 *
 * The declarations are those of QEMU's plugin interface, qemu-plugin.h, of which Debian ships no
 * package. Only for an emulator with one thread.
 */
#include <inttypes.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated_fn)(uint64_t id, struct qemu_plugin_tb *tb);
typedef void (*executed_fn)(unsigned int vcpu, void *userdata);

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translated_fn fn);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, executed_fn fn, int flags,
					  void *userdata);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *insn);

__attribute__((visibility("default"))) int qemu_plugin_version = 2;

struct block {
	struct block *next;
	uint64_t address;
	uint64_t memory;
	uint64_t size;
	uint64_t count;
};

static struct block *blocks;
static const char *file = "profile.txt";
static int counting;
static volatile sig_atomic_t toggled;

static void toggle(void)
{
	struct block *b;
	FILE *out;

	toggled = 0;
	counting = !counting;
	if (counting) {
		for (b = blocks; b; b = b->next)
			b->count = 0;
		return;
	}
	out = fopen(file, "w");
	if (!out)
		return;
	for (b = blocks; b; b = b->next)
		if (b->count)
			fprintf(out, "%" PRIx64 " %" PRIx64 " %" PRIu64 "\n", b->address, b->memory,
				b->count * b->size);
	fclose(out);
}

static void executed(unsigned int vcpu, void *userdata)
{
	struct block *b = userdata;

	(void)vcpu;
	if (toggled)
		toggle();
	b->count += counting;
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	struct block *b = calloc(1, sizeof(*b));

	(void)id;
	if (!b)
		abort();
	b->address = qemu_plugin_tb_vaddr(tb);
	b->memory = (uint64_t)qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0));
	b->size = qemu_plugin_tb_n_insns(tb);
	b->next = blocks;
	blocks = b;
	qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, b);
}

static void wanted(int signal)
{
	(void)signal;
	toggled = 1;
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info,
							       int argc, char **argv)
{
	int i;

	(void)info;
	for (i = 0; i < argc; i++)
		if (!strncmp(argv[i], "out=", 4))
			file = strdup(argv[i] + 4);
	signal(SIGRTMIN + 8, wanted);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
