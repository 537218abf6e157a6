"""`python -m pipelines repro`: many stages at once, and what DVC records of them. No work of a stage itself: that is `engine`."""
