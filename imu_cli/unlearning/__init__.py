"""Why samples go, what is aimed at, and the methods that get there."""
