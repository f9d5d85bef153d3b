"""What enters the head, from one pass of the frozen backbone: how it runs, and what is kept."""
