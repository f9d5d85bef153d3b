"""What the commands found, in the form asked for: pure functions of results, one module a form."""
