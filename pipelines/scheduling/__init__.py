"""Many stages in one command: `dvc repro`, one at a time in a checkout. No work of a stage itself: that is `engine`."""
