// SPDX-License-Identifier: GPL-2.0
/*
 * Functions that are inline or macros in C, and so have no symbol that Rust could call.
 * Each does exactly what the C function of the same name does, unless a comment says otherwise.
 */
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/cdrom.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/file.h>
#include <linux/freezer.h>
#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/fsnotify.h>
#include <linux/hrtimer.h>
#include <linux/irqreturn.h>
#include <linux/llist.h>
#include <linux/mm.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/workqueue.h>
#include <xen/grant_table.h>
#include <xen/page.h>

#ifndef __rust_helper
#define __rust_helper
#endif

__rust_helper unsigned int rust_helper_num_online_cpus(void)
{
	return num_online_cpus();
}

__rust_helper unsigned int rust_helper_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

__rust_helper void rust_helper_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

/* Not named as in C, where the state is an argument of a macro. */
__rust_helper void rust_helper_set_current_state_idle(void)
{
	set_current_state(TASK_IDLE | TASK_FREEZABLE);
}

__rust_helper void rust_helper_set_current_state_running(void)
{
	__set_current_state(TASK_RUNNING);
}

/* Not in C: schedule(), for at most so long; whether the time has passed. */
__rust_helper bool rust_helper_schedule_for(u64 nanoseconds)
{
	ktime_t time = ns_to_ktime(nanoseconds);

	return !schedule_hrtimeout_range(&time, nanoseconds >> 3, HRTIMER_MODE_REL);
}

__rust_helper bool rust_helper_set_freezable(void)
{
	return set_freezable();
}

__rust_helper bool rust_helper_try_to_freeze(void)
{
	return try_to_freeze();
}

__rust_helper void rust_helper_cond_resched(void)
{
	cond_resched();
}

/* Not in C: waits without counting as load, and without being reported as a hung task */
__rust_helper void rust_helper_wait_for_completion_idle(struct completion *completion)
{
	wait_for_completion_state(completion, TASK_IDLE);
}

/* llist: the list of requests whose I/O is done */

__rust_helper bool rust_helper_llist_add(struct llist_node *node, struct llist_head *head)
{
	return llist_add(node, head);
}

__rust_helper struct llist_node *rust_helper_llist_del_all(struct llist_head *head)
{
	return llist_del_all(head);
}

/* workqueue */

__rust_helper struct workqueue_struct *
rust_helper_alloc_workqueue(const char *name, unsigned int flags, int max_active)
{
	return alloc_workqueue("%s", flags, max_active, name);
}

__rust_helper void rust_helper_init_work(struct work_struct *work, work_func_t func)
{
	INIT_WORK(work, func);
}

__rust_helper bool rust_helper_queue_work(struct workqueue_struct *wq, struct work_struct *work)
{
	return queue_work(wq, work);
}

/* What a handler returns: the enum is an integer in some releases' bindings, a struct in others */
__rust_helper irqreturn_t rust_helper_irq_handled(void)
{
	return IRQ_HANDLED;
}

/* sysfs */

__rust_helper struct attribute *
rust_helper_device_attribute_init(struct device_attribute *attr, const char *name,
				  ssize_t (*show)(struct device *dev,
						  struct device_attribute *attr, char *buf),
				  ssize_t (*store)(struct device *dev,
						   struct device_attribute *attr,
						   const char *buf, size_t count))
{
	sysfs_attr_init(&attr->attr);
	attr->attr.name = name;
	attr->attr.mode = store ? 0644 : 0444;
	attr->show = show;
	attr->store = store;
	return &attr->attr;
}

__rust_helper struct attribute *
rust_helper_driver_attribute_init(struct driver_attribute *attr, const char *name,
				  ssize_t (*store)(struct device_driver *drv,
						   const char *buf, size_t count))
{
	sysfs_attr_init(&attr->attr);
	attr->attr.name = name;
	attr->attr.mode = 0200;
	attr->store = store;
	return &attr->attr;
}

__rust_helper void rust_helper_attribute_group_init(struct attribute_group *group,
						    const char *name,
						    struct attribute **attrs)
{
	group->name = name;
	group->attrs = attrs;
}

/* devices */

__rust_helper void rust_helper_device_lock(struct device *dev)
{
	device_lock(dev);
}

__rust_helper bool rust_helper_device_trylock(struct device *dev)
{
	return device_trylock(dev);
}

__rust_helper void rust_helper_device_unlock(struct device *dev)
{
	device_unlock(dev);
}

/* grants */

__rust_helper void rust_helper_gnttab_set_map_op(struct gnttab_map_grant_ref *op,
						 struct page *page, u32 flags,
						 grant_ref_t ref, domid_t domid)
{
	gnttab_set_map_op(op, (unsigned long)page_address(page), flags, ref, domid);
}

__rust_helper void rust_helper_gnttab_set_unmap_op(struct gnttab_unmap_grant_ref *op,
						   struct page *page, u32 flags,
						   grant_handle_t handle)
{
	gnttab_set_unmap_op(op, (unsigned long)page_address(page), flags, handle);
}

/*
 * An operation that copies from a granted page to the same place in a page of ours. One that
 * Xen does not get to has failed.
 */
__rust_helper void rust_helper_gnttab_set_copy_from(struct gnttab_copy *op, domid_t domid,
						    grant_ref_t gref, struct page *page,
						    unsigned int offset, unsigned int len)
{
	*op = (struct gnttab_copy) {
		.source.u.ref = gref,
		.source.domid = domid,
		.source.offset = offset,
		.dest.u.gmfn = xen_page_to_gfn(page),
		.dest.domid = DOMID_SELF,
		.dest.offset = offset,
		.len = len,
		.flags = GNTCOPY_source_gref,
		.status = GNTST_general_error,
	};
}

/* The other way. */
__rust_helper void rust_helper_gnttab_set_copy_to(struct gnttab_copy *op, domid_t domid,
						  grant_ref_t gref, struct page *page,
						  unsigned int offset, unsigned int len)
{
	*op = (struct gnttab_copy) {
		.source.u.gmfn = xen_page_to_gfn(page),
		.source.domid = DOMID_SELF,
		.source.offset = offset,
		.dest.u.ref = gref,
		.dest.domid = domid,
		.dest.offset = offset,
		.len = len,
		.flags = GNTCOPY_dest_gref,
		.status = GNTST_general_error,
	};
}

/* Not in C. Both give up soon: who calls them can do without */
__rust_helper struct page *rust_helper_try_alloc_page_zeroed(void)
{
	return alloc_page(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN | __GFP_NORETRY);
}

__rust_helper void *rust_helper_try_kmalloc(size_t size)
{
	return kmalloc(size, GFP_KERNEL | __GFP_NOWARN | __GFP_NORETRY);
}

__rust_helper void rust_helper_put_page(struct page *page)
{
	put_page(page);
}

__rust_helper struct page *rust_helper_virt_to_page(void *address)
{
	return virt_to_page(address);
}

__rust_helper void *rust_helper_page_address(struct page *page)
{
	return page_address(page);
}

__rust_helper int rust_helper_page_count(struct page *page)
{
	return page_count(page);
}

/* block devices */

__rust_helper sector_t rust_helper_bdev_nr_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

__rust_helper unsigned int rust_helper_bdev_logical_block_size(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

__rust_helper unsigned int rust_helper_bdev_physical_block_size(struct block_device *bdev)
{
	return bdev_physical_block_size(bdev);
}

__rust_helper unsigned int rust_helper_bdev_max_discard_sectors(struct block_device *bdev)
{
	return bdev_max_discard_sectors(bdev);
}

__rust_helper unsigned int rust_helper_bdev_discard_granularity(struct block_device *bdev)
{
	return bdev_discard_granularity(bdev);
}

__rust_helper unsigned int rust_helper_bdev_max_secure_erase_sectors(struct block_device *bdev)
{
	return bdev_max_secure_erase_sectors(bdev);
}

__rust_helper bool rust_helper_bdev_write_cache(struct block_device *bdev)
{
	return bdev_write_cache(bdev);
}

/* Is it a drive with a cdrom_device_info? */
__rust_helper bool rust_helper_bdev_is_cdrom(struct block_device *bdev)
{
	return disk_to_cdi(bdev->bd_disk);
}

__rust_helper bool rust_helper_bdev_is_removable(struct block_device *bdev)
{
	return bdev->bd_disk->flags & GENHD_FL_REMOVABLE;
}

/* dev_t of a major and a minor, as the "physical-device" node gives them */
__rust_helper dev_t rust_helper_mkdev(unsigned int major, unsigned int minor)
{
	return MKDEV(major, minor);
}

__rust_helper unsigned int rust_helper_dev_major(dev_t dev)
{
	return MAJOR(dev);
}

__rust_helper unsigned int rust_helper_dev_minor(dev_t dev)
{
	return MINOR(dev);
}

/* files */

/*
 * filp_open() resolves a path from the root directory of the current task. From Linux 7.3 on
 * a kernel thread has an empty root of its own and must borrow that of the init process.
 */
__rust_helper struct file *rust_helper_filp_open_init(const char *name, int flags)
{
	struct file *file;

#ifdef scoped_with_init_fs
	scoped_with_init_fs()
		file = filp_open(name, flags, 0);
#else
	file = filp_open(name, flags, 0);
#endif
	return file;
}

/* kern_path() of what is to be opened; root as above */
__rust_helper int rust_helper_kern_path_init(const char *name, struct path *path)
{
	int ret;

#ifdef scoped_with_init_fs
	scoped_with_init_fs()
		ret = kern_path(name, LOOKUP_FOLLOW, path);
#else
	ret = kern_path(name, LOOKUP_FOLLOW, path);
#endif
	return ret;
}

/* Opens what a path has led to, with the checks of an open by name */
__rust_helper struct file *rust_helper_path_open(const struct path *path, int flags)
{
	return file_open_root(path, "", flags, 0);
}

__rust_helper struct inode *rust_helper_path_inode(const struct path *path)
{
	return d_backing_inode(path->dentry);
}

__rust_helper umode_t rust_helper_inode_mode(struct inode *inode)
{
	return inode->i_mode;
}

__rust_helper loff_t rust_helper_inode_size(struct inode *inode)
{
	return i_size_read(inode);
}

/* How many have it open for writing */
__rust_helper int rust_helper_inode_writers(struct inode *inode)
{
	return atomic_read(&inode->i_writecount);
}

__rust_helper bool rust_helper_inode_is_swapfile(struct inode *inode)
{
	return IS_SWAPFILE(inode);
}

/*
 * Has a loop device been made of it? While there is one, memory for the file's pages is allocated
 * without I/O (drivers/block/loop.c); what else does that is no regular file.
 */
__rust_helper bool rust_helper_inode_behind_loop(struct inode *inode)
{
	return !(mapping_gfp_mask(inode->i_mapping) & (__GFP_IO | __GFP_FS));
}

__rust_helper void rust_helper_init_sync_kiocb(struct kiocb *kiocb, struct file *file)
{
	init_sync_kiocb(kiocb, file);
}

__rust_helper void rust_helper_kiocb_end_write(struct kiocb *kiocb)
{
	kiocb_end_write(kiocb);
}

__rust_helper loff_t rust_helper_i_size_read(struct file *file)
{
	return i_size_read(file_inode(file));
}

__rust_helper unsigned long rust_helper_file_fs_magic(struct file *file)
{
	return file_inode(file)->i_sb->s_magic;
}

__rust_helper const char *rust_helper_file_fs_name(struct file *file)
{
	return file_inode(file)->i_sb->s_type->name;
}

/*
 * Not in C: vfs_iocb_iter_write() of at least one byte to a regular file, which does not wait
 * for a file system that is frozen to be thawed.
 */
__rust_helper ssize_t
rust_helper_vfs_iocb_iter_write_nowait(struct file *file, struct kiocb *iocb, struct iov_iter *iter)
{
	struct super_block *sb = file_inode(file)->i_sb;
	ssize_t ret;

	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (!(file->f_mode & FMODE_CAN_WRITE) || !file->f_op->write_iter)
		return -EINVAL;
	ret = rw_verify_area(WRITE, file, &iocb->ki_pos, iov_iter_count(iter));
	if (ret < 0)
		return ret;
	if (!sb_start_write_trylock(sb))
		return -EAGAIN;
	/* For lockdep, as in kiocb_start_write(): whoever completes it lets go */
	__sb_writers_release(sb, SB_FREEZE_WRITE);
	ret = file->f_op->write_iter(iocb, iter);
	if (ret != -EIOCBQUEUED)
		kiocb_end_write(iocb);
	if (ret > 0)
		fsnotify_modify(file);
	return ret;
}

/* Whether parts of a file can be given up by vfs_fallocate(). */
__rust_helper bool rust_helper_file_can_fallocate(struct file *file)
{
	return file->f_op->fallocate;
}

/* Closes it before this returns; without the second reference, a work item would do that */
__rust_helper void rust_helper_bdev_close_sync(struct file *bdev_file)
{
	get_file(bdev_file);
	bdev_fput(bdev_file);
	__fput_sync(bdev_file);
}

/* Not in C: what the page cache has of a file goes to the storage, and out of the cache */
__rust_helper int rust_helper_file_drop_cache(struct file *file)
{
	struct address_space *mapping = file_inode(file)->i_mapping;
	int ret = filemap_write_and_wait(mapping);

	return ret ?: invalidate_inode_pages2(mapping);
}

__rust_helper unsigned int rust_helper_file_block_size(struct file *file)
{
	return i_blocksize(file_inode(file));
}
