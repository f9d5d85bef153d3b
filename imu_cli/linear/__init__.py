"""The mathematics of a linear head over many samples, by blocks of rows."""
