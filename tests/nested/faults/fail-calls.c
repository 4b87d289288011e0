// SPDX-License-Identifier: GPL-2.0
/*
 * Has calls fail that one module makes, and nobody else's: by probes at the functions called, so
 * that neither the kernel nor the module need be built for it. A call that is to fail goes on in
 * another function, with the same arguments, which returns what the first one would if it failed.
 *
 * The module to be watched is loaded after this one.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/bio.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/jhash.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <xen/grant_table.h>
#include <xen/xenbus.h>

static char *target = "xen_blkback_rs";
module_param(target, charp, 0444);
MODULE_PARM_DESC(target, "Name of the module whose calls fail");

static unsigned long long mask;
module_param(mask, ullong, 0644);
MODULE_PARM_DESC(mask, "Which functions fail: a bit for each line of counts");

static atomic_t nth;
module_param_named(nth, nth.counter, int, 0644);
MODULE_PARM_DESC(nth, "How many calls from now on one fails; 0 when it has");

static unsigned int permille;
module_param(permille, uint, 0644);
MODULE_PARM_DESC(permille, "How many of a thousand calls fail");

static unsigned int seed;
module_param(seed, uint, 0644);
MODULE_PARM_DESC(seed, "What decides which of a thousand these are");

static atomic_t drawn;
static struct module *watched;

/* What is called instead */

static void *null(void)
{
	return NULL;
}

static void *error_pointer(void)
{
	return ERR_PTR(-ENOMEM);
}

static long no_memory(void)
{
	return -ENOMEM;
}

static long io_error(void)
{
	return -EIO;
}

static long busy(void)
{
	return -EBUSY;
}

/* As of a file system that cannot do this one directly */
static long not_direct(void)
{
	return -EINVAL;
}

static int refused(struct gnttab_map_grant_ref *ops, struct gnttab_map_grant_ref *kernel_ops,
		   struct page **pages, unsigned int count)
{
	while (count--)
		ops[count].status = GNTST_general_error;
	return 0;
}

static int no_room(struct gnttab_map_grant_ref *ops, struct gnttab_map_grant_ref *kernel_ops,
		   struct page **pages, unsigned int count)
{
	while (count--)
		ops[count].status = GNTST_no_space;
	return 0;
}

static void not_copied(struct gnttab_copy *ops, unsigned int count)
{
	while (count--)
		ops[count].status = GNTST_general_error;
}

static int end_transaction(struct xenbus_transaction xbt, int abort)
{
	xenbus_transaction_end(xbt, 1);
	return -ENOMEM;
}

/* As xenbus_switch_state() does it when it cannot write */
static int switch_state(struct xenbus_device *dev, enum xenbus_state state)
{
	if (state != dev->state)
		xenbus_dev_fatal(dev, -ENOMEM, "writing new state");
	return 0;
}

static void end_bio(struct bio *bio)
{
	bio->bi_status = BLK_STS_RESOURCE;
	bio_endio(bio);
}

static struct call {
	const char *name;
	void *instead;
	const char *how;	/* to tell two rows of one function apart */
	/* Called by Rust only, so the kernel crate calls it on our behalf. A size of 0 frees. */
	bool rust;
	/* Of a file, with direct I/O only */
	bool direct;
	atomic_t calls, failures;
	struct kprobe probe;
} calls[] = {
	{ "rust_helper_krealloc_node_align", null, .rust = true },
	{ "__kmalloc_noprof", null },
	{ "alloc_pages_noprof", null },
	{ "alloc_workqueue_noprof", null },
	{ "kthread_create_on_node", error_pointer },
	{ "gnttab_alloc_pages", no_memory },
	{ "gnttab_map_refs", refused },
	{ "gnttab_map_refs", no_room, ":no_room" },
	{ "gnttab_batch_copy", not_copied },
	{ "xenbus_map_ring_valloc", no_memory },
	{ "bind_interdomain_evtchn_to_irqhandler_lateeoi", no_memory },
	{ "register_xenbus_watch", no_memory },
	{ "xenbus_transaction_start", no_memory },
	{ "xenbus_transaction_end", end_transaction },
	{ "xenbus_read", error_pointer },
	{ "xenbus_write", no_memory },
	{ "xenbus_switch_state", switch_state },
	{ "__xenbus_register_backend", no_memory },
	{ "debugfs_create_file_full", error_pointer },
	{ "single_open", no_memory },
	{ "kern_path", no_memory },
	{ "filp_open", error_pointer },
	{ "file_open_root", error_pointer },
	{ "bdev_file_open_by_dev", error_pointer },
	{ "vfs_getattr", no_memory },
	{ "kernel_read", io_error },
	{ "sync_blockdev", io_error },
	{ "invalidate_inode_pages2", busy },
	{ "filemap_write_and_wait_range", io_error },
	{ "submit_bio", end_bio },
	{ "vfs_iocb_iter_read", no_memory },
	{ "vfs_iocb_iter_write", no_memory },
	{ "vfs_iocb_iter_read", not_direct, ":not_direct", .direct = true },
	{ "vfs_iocb_iter_write", not_direct, ":not_direct", .direct = true },
	{ "rw_verify_area", no_memory },
	{ "vfs_fsync", io_error },
	{ "vfs_fallocate", io_error },
	{ "blkdev_issue_discard", io_error },
};

static bool fails(unsigned int number)
{
	unsigned int most = READ_ONCE(permille);

	if (!(READ_ONCE(mask) & BIT_ULL(number)))
		return false;
	if (most)
		return jhash_1word(atomic_inc_return(&drawn), READ_ONCE(seed)) % 1000 < most;
	return !atomic_dec_if_positive(&nth);
}

static bool is_direct(const struct kiocb *iocb)
{
	return iocb->ki_flags & IOCB_DIRECT;
}

/* Runs when a function is entered, on top of the stack being where to return to */
static int entered(struct kprobe *probe, struct pt_regs *regs)
{
	struct call *call = container_of(probe, struct call, probe);
	unsigned long caller = regs_get_kernel_stack_nth(regs, 0);
	struct module *module = READ_ONCE(watched);

	if (!module)
		return 0;
	if (call->rust ? !regs_get_kernel_argument(regs, 1) : !within_module(caller, module))
		return 0;
	if (call->direct && !is_direct((struct kiocb *)regs_get_kernel_argument(regs, 1)))
		return 0;
	atomic_inc(&call->calls);
	if (!fails(call - calls))
		return 0;
	atomic_inc(&call->failures);
	if (!READ_ONCE(permille))
		pr_info("%s%s called by %pS fails\n", call->name, call->how ?: "",
			(void *)caller);
	else
		pr_info_ratelimited("%s%s called by %pS fails\n", call->name, call->how ?: "",
				    (void *)caller);
	regs->ip = (unsigned long)call->instead;
	return 1;
}

/* Without it a probe may not change where the processor goes on */
static void single_stepped(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static int module_event(struct notifier_block *block, unsigned long event, void *data)
{
	struct module *module = data;

	if (strcmp(module->name, target))
		return NOTIFY_DONE;
	if (event == MODULE_STATE_COMING)
		WRITE_ONCE(watched, module);
	else if (event == MODULE_STATE_GOING)
		WRITE_ONCE(watched, NULL);
	return NOTIFY_OK;
}

static struct notifier_block modules = { .notifier_call = module_event };

/* How many calls there were of each function, and how many failed */
static int show_counts(char *buffer, const struct kernel_param *param)
{
	int number, length = 0;

	for (number = 0; number < ARRAY_SIZE(calls); number++)
		length += sysfs_emit_at(buffer, length, "%s%s %d %d\n", calls[number].name,
					calls[number].how ?: "",
					atomic_read(&calls[number].calls),
					atomic_read(&calls[number].failures));
	return length;
}

static const struct kernel_param_ops counts = { .get = show_counts };
module_param_cb(counts, &counts, NULL, 0444);
MODULE_PARM_DESC(counts, "Functions, with how often they were called and how often that failed");

static void unregister_first(int number)
{
	while (number--)
		unregister_kprobe(&calls[number].probe);
}

static int __init fail_calls_init(void)
{
	int number, ret;

	BUILD_BUG_ON(ARRAY_SIZE(calls) > BITS_PER_LONG_LONG);
	for (number = 0; number < ARRAY_SIZE(calls); number++) {
		calls[number].probe.symbol_name = calls[number].name;
		calls[number].probe.pre_handler = entered;
		calls[number].probe.post_handler = single_stepped;
		ret = register_kprobe(&calls[number].probe);
		if (ret) {
			pr_err("no probe at %s: %d\n", calls[number].name, ret);
			goto undo;
		}
	}
	ret = register_module_notifier(&modules);
	if (ret)
		goto undo;
	return 0;
undo:
	unregister_first(number);
	return ret;
}

static void __exit fail_calls_exit(void)
{
	unregister_module_notifier(&modules);
	unregister_first(ARRAY_SIZE(calls));
}

module_init(fail_calls_init);
module_exit(fail_calls_exit);
MODULE_DESCRIPTION("Has calls of a module fail");
MODULE_LICENSE("GPL");
