"""The demoted teacher: a network of any depth learns what it says today with the forgotten answer demoted (docs/method.md)."""
