"""Every option of every command, once: its type, range, default and help text."""
