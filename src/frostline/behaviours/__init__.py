"""What a module does when it runs forward: what it reads, what it writes to itself, and when."""
