"""Pages: the kernel's record of writes, shared by all guards of the process."""
