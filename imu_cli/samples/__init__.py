"""What is listed and measured: data sets, forget lists, and the kinds of sample a model can take."""
