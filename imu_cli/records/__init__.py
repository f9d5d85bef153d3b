"""What the commands measured, as versioned files, and the definition of every metric."""
