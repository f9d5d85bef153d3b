"""From a model's files to a model that runs, and back: layout, architecture, head, destination."""
