"""One module a command, named as it is typed: paths and options in, a result out."""
