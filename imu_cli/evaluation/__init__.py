"""What a model is judged by: evidence in, metrics with intervals, verdicts and a summary out."""
