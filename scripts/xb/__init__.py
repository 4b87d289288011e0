"""Build logic of xen-blkback-rs: build root, kernel trees, module, checks (entry program: scripts/xb.py)."""
